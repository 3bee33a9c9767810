#include "channels.h"

#include "../ops/linear_combination.h"
