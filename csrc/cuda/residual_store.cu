#include "launch.h"

#include "../ops/residual_store.h"
