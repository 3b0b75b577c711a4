/* Runs a program of the kernels by a library of theirs, without Python: for systems that have none here.

       run_library LIBRARY LEVEL PROGRAM OUTPUT

   PROGRAM, made by tools/dev/check_libraries.py: seven int64 (pictures; floats in one of them, in an embedding, of weights and
   of the arena; int64 of tables and of steps), then pictures, weights, tables and steps. */

#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

#ifdef _WIN32
#include <windows.h>
#define LOAD(name) (void *)LoadLibraryA(name)
#define FIND(library, name) (void *)GetProcAddress(library, name)
#else
#include <dlfcn.h>
#define LOAD(name) dlopen(name, RTLD_NOW)
#define FIND(library, name) dlsym(library, name)
#endif

typedef int64_t (*question)(void);
typedef void (*runner)(int64_t, int64_t, int64_t, int64_t, int64_t, int64_t, int64_t, int64_t, int64_t, int64_t);

enum { PICTURES, PICTURE, EMBEDDING, WEIGHTS, ARENA, TABLES, STEPS, COUNTS };

static void fail(const char *what) {
    fprintf(stderr, "%s\n", what);
    exit(1);
}

static void *part(FILE *file, int64_t count, size_t size) {
    char *data = calloc(count * size + 64, 1), *aligned = (char *)(((uintptr_t)data + 63) & ~(uintptr_t)63);
    if (!data || (file && fread(aligned, size, count, file) != (size_t)count)) fail("the program ends too early");
    return aligned;
}

int main(int argc, char **argv) {
    int64_t n[COUNTS];
    char name[] = "alnumpy_run_0";
    if (argc != 5) fail("usage: run_library LIBRARY LEVEL PROGRAM OUTPUT");
    void *library = LOAD(argv[1]);
    if (!library) fail("the library cannot be loaded");
    question level = (question)FIND(library, "alnumpy_level"), abi = (question)FIND(library, "alnumpy_abi");
    name[sizeof name - 2] = *argv[2];
    runner run = (runner)FIND(library, name);
    if (!level || !abi || !run) fail("the library lacks a function");
    FILE *file = fopen(argv[3], "rb");
    if (!file || fread(n, sizeof *n, COUNTS, file) != COUNTS) fail("the program cannot be read");
    float *pictures = part(file, n[PICTURES] * n[PICTURE], 4), *weights = part(file, n[WEIGHTS], 4);
    int64_t *tables = part(file, n[TABLES], 8), *steps = part(file, n[STEPS], 8);
    float *embeddings = part(NULL, n[PICTURES] * n[EMBEDDING], 4), *arena = part(NULL, n[ARENA], 4);
    run((intptr_t)pictures, n[PICTURE], n[PICTURES], (intptr_t)embeddings, n[EMBEDDING], (intptr_t)weights, (intptr_t)tables,
        (intptr_t)steps, n[STEPS] / 24, (intptr_t)arena);
    FILE *output = fopen(argv[4], "wb");
    if (!output || fwrite(embeddings, 4, n[PICTURES] * n[EMBEDDING], output) != (size_t)(n[PICTURES] * n[EMBEDDING]) ||
        fclose(output))
        fail("the output cannot be written");
    printf("abi %lld level %lld\n", (long long)abi(), (long long)level());
    return 0;
}
