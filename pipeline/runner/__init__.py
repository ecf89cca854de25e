"""Running a recipe. Start with `runner`; each module calls those below it.

| module | what it holds |
|---|---|
| `runner` | a run from its lock to its result |
| `scheduler` | which stage starts when; watching stages, and publishing them as they end |
| `scratch` | a stage's scratch folder: made ready for an attempt, published afterwards |
| `starting` | how an attempt's process is started: directly, by a fork, or by `accelerate launch` |
| `slots` | the GPUs of stages; on a cluster see `pipeline.cluster.slots` |
| `inputs` | a stage starts only from what was published |
| `store` | copies of artifacts and checkpoints in a bucket |
| `early`, `forkserver` | processes that have loaded their libraries before it is their turn |
| `recording` | the record of a run, and the manifest of a stage |
| `process` | an attempt's process as the runner sees it |
| `launcher`, `worker` | those processes from within |
| `ranks` | what the ranks of a stage leave for the runner |
| `observer` | who is told what happens |
| `graph`, `longer` | stages and their fingerprints; training that goes on from a shorter one |
"""
