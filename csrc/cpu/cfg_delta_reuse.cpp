#include "vector.h"

#include "../ops/cfg_delta_reuse.h"
