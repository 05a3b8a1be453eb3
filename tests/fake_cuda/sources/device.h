// What the fake libraries share. All of it lives in the fake libcudart; the others link against that.
//
// Every call worth counting becomes one line of the log, five fields separated by tabs:
//
//     thread   state   stream   call   details
//
// state is "-" for a call that takes effect at once, the number of a capture for work that a capture recorded, and
// "illegal" for a call that CUDA refuses while a capture is open. details are "name=value" pairs with a space between.
// trace.py reads this.
#pragma once

extern "C" {
/// Write one line about a call that enqueues nothing.
void fake_log(const char* call, const char* details, ...) __attribute__((format(printf, 2, 3)));
/// Write one line about work on a stream, which an open capture of that stream records.
void fake_enqueue(const void* stream, const char* call, const char* details, ...) __attribute__((format(printf, 3, 4)));
}

/// What a cuBLAS or cuDNN handle points to. A program passes it back and never looks inside.
struct Handle {
    void* stream = nullptr;
    int math_mode = 0;
};

/// A value for handles of which only the address counts; no two are alike.
inline void* new_token() {
    static unsigned long last = 0x1000;
    return reinterpret_cast<void*>(__atomic_add_fetch(&last, 0x10, __ATOMIC_RELAXED));
}
