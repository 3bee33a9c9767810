#include "launch.h"

#include "../ops/cfg_delta_reuse.h"
