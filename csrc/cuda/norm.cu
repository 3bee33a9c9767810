#include "launch.h"

#include "../ops/norm.h"
