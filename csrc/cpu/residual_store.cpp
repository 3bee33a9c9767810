#include "vector.h"

#include "../ops/residual_store.h"
