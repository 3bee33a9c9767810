#include "vector.h"

#include "../ops/cfg_delta_store.h"
