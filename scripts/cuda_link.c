/* What a program is linked with in place of CUDA's libraries: functions of their names, each of which opens its library at the first call.
 * So the program names none of them, starts where there are none, and takes those of the machine where there are.
 *
 * "cuda_functions.h", written by build-cuda, has a line FUNCTION(library, name, status) for every function that may be called: `library` is
 * a place in the table below, `status` 1 where it returns a status and 0 where it returns a text or a size (of a library that is not there: none). */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>

#define RETURNS(status) static long returns_##status(void) { return status; }
RETURNS(0) RETURNS(1) RETURNS(11) RETURNS(15) RETURNS(100) RETURNS(203) RETURNS(500) RETURNS(999)

#define TEXT_OF(major) #major
#define TEXT(major) TEXT_OF(major)

static struct library {
    const char *file;
    long (*absent)(void);   /* no device; not initialised */
    long (*too_old)(void);  /* not found; not supported */
    int told;
} libraries[] = {
    {"libcuda.so.1", returns_100, returns_500, 0},
    {"libcublas.so." TEXT(CUDA_MAJOR), returns_1, returns_15, 0},
    {"libcublasLt.so." TEXT(CUDA_MAJOR), returns_1, returns_15, 0},
    {"libcurand.so.10", returns_203, returns_999, 0},
    {"libnvrtc.so." TEXT(CUDA_MAJOR), returns_11, returns_11, 0},
};

struct function {
    void *address;          /* where the next call goes */
    const char *name;
    long library, status;
};

static void *open_in(const char *root, const char *folder, const char *file) {
    char path[4096];
    if (!root || !*root || snprintf(path, sizeof path, "%s/%s/%s", root, folder, file) >= (int)sizeof path) return NULL;
    return dlopen(path, RTLD_NOW | RTLD_LOCAL);
}

/* The library: where the loader looks, and where machines keep it that do not tell the loader. Opening it again gives the same one. */
static void *open_library(struct library *library) {
    const char *file = library->file;
    void *handle = dlopen(file, RTLD_NOW | RTLD_LOCAL);
    char why[512];
    if (handle) return handle;
    snprintf(why, sizeof why, "%s", dlerror());
    if (library == libraries) { /* the driver; where there is none, the program says so */
        handle = open_in("/usr/local/nvidia", "lib64", file);
        if (!handle) handle = open_in("/usr/lib", "x86_64-linux-gnu", file);
        if (!handle) handle = open_in("/usr/lib", "wsl/lib", file);
        return handle;
    }
    handle = open_in(getenv("CUDA_HOME"), "lib64", file);
    if (!handle) handle = open_in(getenv("CUDA_PATH"), "lib64", file);
    if (!handle) handle = open_in("/usr/local/cuda", "lib64", file);
    if (!handle && !__atomic_exchange_n(&library->told, 1, __ATOMIC_RELAXED))
        fprintf(stderr, "mixpool: %s cannot be opened (%s); name its folder in LD_LIBRARY_PATH\n", file, why);
    return handle;
}

/* What a call of the function goes to from now on. Threads that come at once find the same. */
__attribute__((used, visibility("hidden"))) void *mixpool_cuda_function(struct function *function) {
    struct library *library = &libraries[function->library];
    void *handle = open_library(library), *address = handle ? dlsym(handle, function->name) : NULL;
    if (handle && !address) fprintf(stderr, "mixpool: %s has no %s: it is older than this program\n", library->file, function->name);
    if (!address) address = (void *)(!function->status ? returns_0 : handle ? library->too_old : library->absent);
    __atomic_store_n(&function->address, address, __ATOMIC_RELEASE);
    return address;
}

/* A function is a jump to its `address`: at first the line after, which leaves the place of its `struct function` in r11. */
#define FUNCTION(library, name, status)                                                                                                    \
    __asm__(".text\n.p2align 4\n.globl " #name "\n.hidden " #name "\n.type " #name ", @function\n"                                         \
            #name ": jmp *1f(%rip)\n2: lea 1f(%rip), %r11\n jmp mixpool_cuda_first\n.size " #name ", . - " #name "\n"                       \
            ".data\n.p2align 3\n1: .quad 2b, 3f, " #library ", " #status "\n.section .rodata\n3: .asciz \"" #name "\"\n.text\n");
#include "cuda_functions.h"

/* The first call: asks where to go, with every register that may hold an argument kept. */
__asm__(".text\n.p2align 4\n.type mixpool_cuda_first, @function\nmixpool_cuda_first:\n"
        " push %rbp\n mov %rsp, %rbp\n push %rdi\n push %rsi\n push %rdx\n push %rcx\n push %r8\n push %r9\n push %rax\n sub $136, %rsp\n"
        " movups %xmm0, (%rsp)\n movups %xmm1, 16(%rsp)\n movups %xmm2, 32(%rsp)\n movups %xmm3, 48(%rsp)\n"
        " movups %xmm4, 64(%rsp)\n movups %xmm5, 80(%rsp)\n movups %xmm6, 96(%rsp)\n movups %xmm7, 112(%rsp)\n"
        " mov %r11, %rdi\n call mixpool_cuda_function\n mov %rax, %r11\n"
        " movups (%rsp), %xmm0\n movups 16(%rsp), %xmm1\n movups 32(%rsp), %xmm2\n movups 48(%rsp), %xmm3\n"
        " movups 64(%rsp), %xmm4\n movups 80(%rsp), %xmm5\n movups 96(%rsp), %xmm6\n movups 112(%rsp), %xmm7\n"
        " add $136, %rsp\n pop %rax\n pop %r9\n pop %r8\n pop %rcx\n pop %rdx\n pop %rsi\n pop %rdi\n pop %rbp\n jmp *%r11\n"
        ".size mixpool_cuda_first, . - mixpool_cuda_first\n");
