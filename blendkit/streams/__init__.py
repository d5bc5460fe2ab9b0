"""What comes in and goes out: lines, files, resume, rejects, manifests, progress."""

# The values of `--resume`, here because the command line needs them before anything else.
PLAIN, FORCE = "plain", "force"
