"""Where generated code runs: a process of a locked interpreter that gets inputs and gives back outputs, nothing else.

`isolation` is what stands around the interpreter, `lockdown` (with `landlock` and `seccomp`) what it gives up itself,
`template` the interpreter, `job` what runs in a process forked from it, `wire` the format of what goes in and out,
`process` the trusted end, and `probe` the proof that all this holds on this machine.
"""
