#include "launch.h"

#include "../ops/direction_magnitude.h"
