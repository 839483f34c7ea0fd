//! Emulator: launches kernels by name, one block after another, the threads of a block as fibers.
#include "all.cu"

#include <setjmp.h>
#include <stdio.h>
#include <stdlib.h>
#include <ucontext.h>

#include <memory>
#include <vector>

namespace emulation {

Registered* Registered::first = nullptr;

constexpr size_t STACK = 256 << 10;

// A stack on which threads of a block run: one after the other, until one has to wait.
struct Fiber {
    ucontext_t entry;
    jmp_buf place;
    bool started = false, running = false;
    Index thread;
    unsigned turn;
    std::unique_ptr<unsigned char[]> stack{new unsigned char[STACK]};
};

struct Barrier {
    unsigned arrived = 0, generation = 0;
};

// The block that runs, per thread of the operating system.
struct Machine {
    std::vector<std::unique_ptr<Fiber>> fibers;
    Fiber* current = nullptr;
    jmp_buf scheduler;
    ucontext_t origin;
    Registered* kernel = nullptr;
    void** arguments = nullptr;
    unsigned threads = 0, next = 0, done = 0, events = 0;
    Barrier barrier;
    std::vector<Warp> warps;
    std::vector<uint64_t> shared;
};
static thread_local Machine machine;

[[noreturn]] static void fail(const char* what) {
    fprintf(stderr, "emulated kernel '%s', block (%u, %u, %u): %s\n", machine.kernel->name, blockIdx.x, blockIdx.y, blockIdx.z, what);
    abort();
}

static void to_scheduler(Fiber& self) {
    if (_setjmp(self.place) == 0) _longjmp(machine.scheduler, 1);
}

static void wait(unsigned& arrived, unsigned& generation, unsigned expected) {
    unsigned before = generation;
    if (++arrived == expected) {
        arrived = 0;
        generation++;
        machine.events++;
        return;
    }
    Fiber& self = *machine.current;
    while (generation == before) to_scheduler(self);
}

void wait_for_block() { wait(machine.barrier.arrived, machine.barrier.generation, machine.threads); }
void wait_for_warp() { wait(warp().arrived, warp().generation, 32); }
unsigned char* dynamic_shared() { return reinterpret_cast<unsigned char*>(machine.shared.data()); }
Warp& warp() { return machine.warps[machine.current->thread.x / 32]; }
unsigned lane() { return machine.current->thread.x % 32; }
unsigned& turn() { return machine.current->turn; }

static void fiber_main() {
    for (;;) {
        Fiber& self = *machine.current;
        while (machine.next < machine.threads) {
            self.thread = threadIdx = {machine.next++, 0, 0};
            self.turn = 0;
            machine.kernel->invoke(machine.arguments);
            machine.done++;
            machine.events++;
        }
        self.running = false;
        to_scheduler(self);
    }
}

static void resume(Fiber& fiber) {
    machine.current = &fiber;
    threadIdx = fiber.thread;
    if (_setjmp(machine.scheduler) != 0) return;
    if (fiber.started) _longjmp(fiber.place, 1);
    fiber.started = true;
    getcontext(&fiber.entry);
    fiber.entry.uc_stack.ss_sp = fiber.stack.get();
    fiber.entry.uc_stack.ss_size = STACK;
    fiber.entry.uc_link = nullptr;
    makecontext(&fiber.entry, fiber_main, 0);
    swapcontext(&machine.origin, &fiber.entry);
}

static void run_block() {
    machine.next = machine.done = 0;
    machine.barrier = Barrier();
    memset(machine.warps.data(), 0, machine.warps.size() * sizeof(Warp));
    memset(machine.shared.data(), 0xff, machine.shared.size() * 8);  // NaN, for whoever reads before writing
    while (machine.done < machine.threads) {
        unsigned events = machine.events;
        for (size_t i = 0; machine.done < machine.threads; i++) {
            if (i == machine.fibers.size()) {
                if (machine.next == machine.threads) break;
                machine.fibers.emplace_back(new Fiber());
            }
            Fiber& fiber = *machine.fibers[i];
            if (!fiber.running) {
                if (machine.next == machine.threads) continue;
                fiber.running = true;
            }
            resume(fiber);
        }
        if (machine.events == events) fail("a barrier that not all threads reach");
    }
}

}  // namespace emulation

// 0, or what is wrong: 1 no such kernel, 2 other arguments, 3 too many threads or not whole warps.
extern "C" int mixpool_emulated_launch(const char* name, const unsigned* grid, unsigned threads, size_t shared, void** arguments,
                                       const unsigned* sizes, unsigned n_arguments) {
    using namespace emulation;
    Registered* kernel = Registered::first;
    while (kernel && strcmp(kernel->name, name) != 0) kernel = kernel->next;
    if (!kernel) return 1;
    if (kernel->n_arguments != n_arguments || memcmp(kernel->sizes, sizes, n_arguments * sizeof(unsigned)) != 0) return 2;
    if (threads > kernel->max_threads || threads % 32 != 0) return 3;
    machine.kernel = kernel;
    machine.arguments = arguments;
    machine.threads = threads;
    machine.warps.resize(threads / 32);
    machine.shared.assign((shared + 7) / 8 + 2, 0);
    gridDim = {grid[0], grid[1], grid[2]};
    blockDim = {threads, 1, 1};
    for (unsigned z = 0; z < grid[2]; z++)
        for (unsigned y = 0; y < grid[1]; y++)
            for (unsigned x = 0; x < grid[0]; x++) {
                blockIdx = {x, y, z};
                run_block();
            }
    return 0;
}
