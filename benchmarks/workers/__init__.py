"""The code that runs in worker processes.

A worker may run in another environment, without latentrt and with older libraries. So `serve`, `measure` and the two
pipelines import only the standard library, numpy and the libraries of their contender.

    serve              the line protocol: receives calls, sends answers
    measure            clocks for host and CUDA streams, memory
    ours               latentrt
    torch_pipeline     diffusers: eager, compiled by torch, or compiled by stable-fast
    optimum_pipeline   optimum-onnx
    peaks              the machine's peaks
    prepare            writes checkpoints, exports, builds
"""
