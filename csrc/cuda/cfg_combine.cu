#include "launch.h"

#include "../ops/cfg_combine.h"
