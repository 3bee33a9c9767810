#include "vector.h"

#include "../ops/cfg_combine.h"
