"""What runs inside a worker process.

A worker may live in another environment than latentrt, with older libraries: everything here but `ours` and `prepare`
imports the standard library, numpy and its own contender's libraries alone.

    serve              the line protocol: calls come in, answers go out
    measure            clocks that know streams, peak memory
    ours               latentrt itself
    torch_pipeline     diffusers, eager, compiled, or through stable-fast
    optimum_pipeline   optimum-onnx
    prepare            makes checkpoints, exports, builds
"""
