// A stand-in for the CUDA runtime: the kernels compile as C++ for this processor and are run for what they compute, in
// which order and with what in between, never for how fast.
//
// A device thread is a context of its own, which gives way only where the kernel waits: at a barrier, a shuffle or the
// grid.  Who goes on next is drawn anew at every round, so a result that depends on the order differs between seeds
// (VACCEL_EMULATED_SEED).  The blocks of a cooperative launch are operating system threads, which is why __shared__ is
// thread_local; those of any other launch follow one another in a drawn order.  Under ThreadSanitizer every device
// thread is one to it too, ordered with others by barriers alone: what two touch between two barriers is reported.
#pragma once

#include <ucontext.h>

#include <barrier>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <memory>
#include <thread>
#include <vector>

#define __host__
#define __device__
#define __global__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __grid_constant__
#define __shared__ static thread_local

#if defined(__SANITIZE_THREAD__)
extern "C" {
void* __tsan_create_fiber(unsigned flags);
void __tsan_destroy_fiber(void* fiber);
void* __tsan_get_current_fiber();
void __tsan_switch_to_fiber(void* fiber, unsigned flags);
void __tsan_acquire(void* address);
void __tsan_release(void* address);
}
#define EMULATOR __attribute__((no_sanitize("thread"), noinline))  // its own bookkeeping is no kernel's
#else
inline void* __tsan_create_fiber(unsigned) { return nullptr; }
inline void __tsan_destroy_fiber(void*) {}
inline void* __tsan_get_current_fiber() { return nullptr; }
inline void __tsan_switch_to_fiber(void*, unsigned) {}
inline void __tsan_acquire(void*) {}
inline void __tsan_release(void*) {}
#define EMULATOR
#endif

struct dim3 {
  unsigned x, y, z;
  explicit dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};
struct alignas(16) uint4 {
  unsigned x, y, z, w;
};

namespace emulated {

constexpr unsigned kWarp = 32, kMostThreads = 1024;
constexpr unsigned kUnordered = 1;  // to ThreadSanitizer: going from one device thread to another orders nothing

[[noreturn]] inline void stop(const char* why) {
  std::fprintf(stderr, "emulated GPU: %s\n", why);
  std::fflush(nullptr);
  std::_Exit(3);
}

inline uint64_t setting(const char* name, uint64_t otherwise) {
  const char* said = std::getenv(name);
  return said ? std::strtoull(said, nullptr, 10) : otherwise;
}
inline uint64_t seed() { return setting("VACCEL_EMULATED_SEED", 1); }
// Multiprocessors, each of which holds one block.
inline unsigned processors() { return static_cast<unsigned>(setting("VACCEL_EMULATED_PROCESSORS", 3)); }

// What is common to the blocks of a launch.
struct Launch {
  unsigned blocks, threads;
  bool cooperative;
  std::function<void()> kernel;
  std::barrier<> grid;
  char begun = 0, ended = 0;  // addresses that order the host and the device threads
  Launch(unsigned blocks, unsigned threads, bool cooperative, std::function<void()> kernel)
      : blocks(blocks), threads(threads), cooperative(cooperative), kernel(std::move(kernel)), grid(blocks) {}
};

// A count of how often something was opened; who waits has seen fewer.
using Gate = uint64_t;

struct Thread {
  ucontext_t context;
  void* known_as = nullptr;  // to ThreadSanitizer
  const Gate* gate = nullptr;
  Gate seen = 0;
  bool done = false;
};

struct Warp {
  uint64_t values[2][kWarp];
  unsigned arrived = 0;
  Gate gate = 0;
};

class Block {
 public:
  Block(Launch& launch, unsigned index, uint64_t random)
      : launch_(launch), index_(index), count_(launch.threads), random_(random * 2 + 1) {
    if (count_ == 0 || count_ % kWarp != 0 || count_ > kMostThreads) stop("a block is 1 to 32 whole warps");
    threads_ = new Thread[count_];
    warps_ = new Warp[count_ / kWarp];
    stacks_ = new char[size_t{count_} * kStack];
    order_ = new unsigned[count_];
    for (unsigned i = 0; i < count_; ++i) {
      order_[i] = i;
      ucontext_t& context = threads_[i].context;
      getcontext(&context);
      context.uc_stack.ss_sp = stacks_ + size_t{i} * kStack;
      context.uc_stack.ss_size = kStack;
      context.uc_link = nullptr;
      makecontext(&context, &Block::enter, 0);
      threads_[i].known_as = __tsan_create_fiber(0);
    }
  }
  ~Block() {
    for (unsigned i = 0; i < count_; ++i) __tsan_destroy_fiber(threads_[i].known_as);
    delete[] threads_;
    delete[] warps_;
    delete[] stacks_;
    delete[] order_;
  }
  Block(const Block&) = delete;

  static Block*& current() {
    static thread_local Block* block = nullptr;
    return block;
  }

  // Until every thread has returned.
  EMULATOR void run() {
    current() = this;
    scheduler_ = __tsan_get_current_fiber();
    while (done_ < count_) {
      const uint64_t before = events_;
      shuffle_order();
      for (unsigned place = 0; place < count_; ++place) {
        Thread& thread = threads_[order_[place]];
        if (!thread.done && (thread.gate == nullptr || *thread.gate != thread.seen)) go_on(order_[place]);
      }
      if (at_grid_ != 0 && at_grid_ + done_ == count_) {
        if (done_ != 0) stop("a thread has returned where others wait for the grid");
        launch_.grid.arrive_and_wait();
        at_grid_ = 0;
        ++grid_gate_, ++events_;
      }
      if (events_ == before) stop("deadlock: threads wait for what the others never reach");
    }
    if (launch_.cooperative) launch_.grid.arrive_and_drop();
    current() = nullptr;
  }

  EMULATOR unsigned thread() const { return running_; }
  EMULATOR unsigned index() const { return index_; }
  EMULATOR unsigned blocks() const { return launch_.blocks; }
  EMULATOR unsigned threads() const { return count_; }

  // Of all threads that have not returned; whether any of them has voted.
  EMULATOR bool barrier(bool vote) {
    const Gate turn = block_gate_;
    __tsan_release(&block_gate_);
    votes_[turn % 2] = votes_[turn % 2] || vote;
    ++at_block_;
    open_block();
    wait(&block_gate_, turn);
    __tsan_acquire(&block_gate_);
    return votes_[turn % 2];
  }

  EMULATOR void grid_barrier() {
    if (!launch_.cooperative) stop("the grid is waited for in a launch that is not cooperative");
    const Gate turn = grid_gate_;
    __tsan_release(&launch_);
    ++at_grid_;
    wait(&grid_gate_, turn);
    __tsan_acquire(&launch_);
  }

  // What a lane of the warp has given.  Orders no memory: that is for barriers.
  EMULATOR uint64_t exchange(unsigned mask, uint64_t given, unsigned from) {
    Warp& warp = warps_[running_ / kWarp];
    const unsigned lane = running_ % kWarp;
    if ((mask >> lane & 1) == 0) stop("a lane shuffles that its mask leaves out");
    if ((mask >> from & 1) == 0) stop("a shuffle reads a lane that its mask leaves out");
    const Gate turn = warp.gate;
    warp.values[turn % 2][lane] = given;
    warp.arrived |= 1u << lane;
    if (warp.arrived == mask) {
      warp.arrived = 0;
      ++warp.gate, ++events_;
    }
    wait(&warp.gate, turn);
    return warp.values[turn % 2][from];
  }

 private:
  static constexpr size_t kStack = 128 * 1024;

  EMULATOR static void enter() {
    Block& block = *current();
    __tsan_acquire(&block.launch_.begun);
    block.launch_.kernel();
    __tsan_release(&block.launch_.ended);
    block.leave();
  }
  EMULATOR void leave() {
    threads_[running_].done = true;
    ++done_, ++events_;
    open_block();
    give_way();
    stop("a thread went on after its end");
  }
  EMULATOR void open_block() {
    if (at_block_ == 0 || at_block_ + done_ != count_) return;
    at_block_ = 0;
    ++block_gate_, ++events_;
    votes_[block_gate_ % 2] = false;  // the next turn's; this one's are read until then
  }
  EMULATOR void wait(const Gate* gate, Gate seen) {
    threads_[running_].gate = gate;
    threads_[running_].seen = seen;
    give_way();
  }
  EMULATOR void go_on(unsigned i) {
    running_ = i;
    threads_[i].gate = nullptr;
    __tsan_switch_to_fiber(threads_[i].known_as, kUnordered);
    swapcontext(&own_, &threads_[i].context);
  }
  EMULATOR void give_way() {
    __tsan_switch_to_fiber(scheduler_, kUnordered);
    swapcontext(&threads_[running_].context, &own_);
  }
  EMULATOR uint64_t draw(uint64_t below) {
    random_ ^= random_ << 13, random_ ^= random_ >> 7, random_ ^= random_ << 17;
    return random_ % below;
  }
  // Fisher and Yates; every other round whole warps go first, far ahead of those behind them.
  EMULATOR void shuffle_order() {
    if (seed() == 0) return;
    for (unsigned i = count_ - 1; i > 0; --i) {
      const unsigned j = static_cast<unsigned>(draw(i + 1)), kept = order_[i];
      order_[i] = order_[j], order_[j] = kept;
    }
  }

  Launch& launch_;
  unsigned index_, count_, running_ = 0, done_ = 0, at_block_ = 0, at_grid_ = 0;
  uint64_t random_, events_ = 0;
  Gate block_gate_ = 0, grid_gate_ = 0;
  bool votes_[2] = {};
  Thread* threads_;
  Warp* warps_;
  char* stacks_;
  unsigned* order_;
  ucontext_t own_;
  void* scheduler_ = nullptr;
};

inline void launch(unsigned blocks, unsigned threads, bool cooperative, std::function<void()> kernel) {
  static uint64_t launches = 0;
  if (blocks == 0) stop("a grid of no blocks");
  Launch launch(blocks, threads, cooperative, std::move(kernel));
  const uint64_t drawn = (seed() << 20) + ++launches;
  __tsan_release(&launch.begun);
  if (cooperative) {
    if (blocks > processors()) stop("more cooperative blocks than fit on the device");
    std::vector<std::thread> running;
    for (unsigned b = 0; b < blocks; ++b)
      running.emplace_back([&launch, b, drawn] { Block(launch, b, drawn * 64 + b).run(); });
    for (std::thread& thread : running) thread.join();
  } else {
    const unsigned first = static_cast<unsigned>(drawn * 2654435761u % blocks);  // in a drawn order: from there on
    for (unsigned n = 0; n < blocks; ++n) Block(launch, (first + n) % blocks, drawn * 64 + n).run();
  }
  __tsan_acquire(&launch.ended);
}

// threadIdx.x and the like: asked of the block that runs.
template <unsigned (Block::*of)() const>
struct Index {
  struct Along {
    operator unsigned() const { return (Block::current()->*of)(); }
  };
  Along x;
};

template <class T>
inline const T& whole(const T* at) {
  if (reinterpret_cast<uintptr_t>(at) % alignof(T) != 0) stop("a wide access that is not aligned");
  return *at;
}

}  // namespace emulated

inline constexpr emulated::Index<&emulated::Block::thread> threadIdx{};
inline constexpr emulated::Index<&emulated::Block::index> blockIdx{};
inline constexpr emulated::Index<&emulated::Block::blocks> gridDim{};
inline constexpr emulated::Index<&emulated::Block::threads> blockDim{};

inline void __syncthreads() { emulated::Block::current()->barrier(false); }
inline int __syncthreads_or(int vote) { return emulated::Block::current()->barrier(vote != 0); }
template <class V>
inline V __shfl_xor_sync(unsigned mask, V value, int distance) {
  static_assert(sizeof(V) <= sizeof(uint64_t));
  uint64_t bits = 0;
  std::memcpy(&bits, &value, sizeof(V));
  const unsigned from = emulated::Block::current()->thread() % emulated::kWarp ^ static_cast<unsigned>(distance);
  bits = emulated::Block::current()->exchange(mask, bits, from);
  std::memcpy(&value, &bits, sizeof(V));
  return value;
}
template <class T>
inline T __ldcg(const T* from) {
  return emulated::whole(from);
}
template <class T>
inline void __stcg(T* to, const T& value) {
  emulated::whole(to);
  *to = value;
}

// -- the runtime's own functions -------------------------------------------------------------------------------------

using cudaStream_t = struct CUstream_st*;
enum cudaError_t { cudaSuccess = 0 };
enum cudaDeviceAttr { cudaDevAttrMultiProcessorCount };
enum cudaLaunchAttributeID { cudaLaunchAttributeCooperative };
struct cudaLaunchAttribute {
  cudaLaunchAttributeID id;
  struct {
    int cooperative;
  } val;
};
struct cudaLaunchConfig_t {
  dim3 gridDim, blockDim;
  size_t dynamicSmemBytes;
  cudaStream_t stream;
  cudaLaunchAttribute* attrs;
  unsigned numAttrs;
};
inline const char* cudaGetErrorString(cudaError_t) { return "emulated"; }
template <class Kernel>
inline cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessor(int* blocks, Kernel, int, size_t) {
  *blocks = 1;
  return cudaSuccess;
}
inline cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr, int) {
  *value = static_cast<int>(emulated::processors());
  return cudaSuccess;
}
template <class... Parameters, class... Arguments>
inline cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t* config, void (*kernel)(Parameters...),
                                      Arguments... arguments) {
  bool cooperative = false;
  for (unsigned a = 0; a < config->numAttrs; ++a) cooperative = cooperative || config->attrs[a].val.cooperative != 0;
  emulated::launch(config->gridDim.x, config->blockDim.x, cooperative, [=] { kernel(arguments...); });
  return cudaSuccess;
}
