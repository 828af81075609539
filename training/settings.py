"""The constants that every training has: a training script imports them, and has a flag for each as for its own."""
DEVICE = "auto"           # "auto": CUDA, then Apple's MPS, then the CPU; or "cpu", "cuda", "cuda:1", "mps"
SAVE_EVERY = 600          # seconds between checkpoints within an epoch; there is one after each epoch anyway
RESUME = "auto"           # "auto" continues an unfinished run; "never" starts over
OVERWRITE = False         # let RESUME = "never" replace a finished run
COMPILE = "auto"          # torch.compile: "yes", "no", or "auto": for long runs on CUDA, where its start pays off
PRECISION = "auto"        # of a step: "float32", "bfloat16", or "auto": bfloat16 where the device computes faster in it
TENSORBOARD = False       # write event files for TensorBoard as well
