#include "launch.h"

#include "../ops/relative_l1.h"
