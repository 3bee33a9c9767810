#include "launch.h"

#include "../ops/cfg_delta_store.h"
