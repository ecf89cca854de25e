"""GRPO as one step. Start with `trainer`; the loss and its equations are in `objective`.

Axes, the capital letters at the end of a tensor's name:

    B  rollouts (rows) of this process           P  prompt tokens, padded on the left
    C  completion tokens, padded on the right    T  prompt and completion tokens, P + C
    N  tokens of a packed row                    S  sequences in a packed row
    G  groups: the rollouts of one prompt        F  reward functions

| module | what it holds |
|---|---|
| `trainer` | the step: sample, judge, advantages, mask, passes, log-probabilities, loss |
| `objective` | the loss: advantages, ratios, clipping, KL, aggregation, importance weights |
| `entropy` | the bonus for entropy |
| `batch` | the tensors of a generation batch |
| `logprobs` | log-probabilities of completions, packed or padded |
| `micro_batches` | passes of bounded size |
| `problem_order` | which problems a generation batch holds |
| `pool` | the same, where solved and hopeless problems come up less often |
| `schedule` | which numbers fit together: groups, micro-batches, checkpoints |
| `judging` | rewards in the background, samples, groups without variance |
| `sampling` | where rollouts come from: the policy itself, or vLLM in this process |
| `engines` | where they come from otherwise: engines in processes of their own, also ahead of training |
| `dynamic_sampling` | groups without variance, replaced |
| `reporting` | metrics of rollouts: lengths, rewards, dead groups, samples |
| `reference` | the model that KL is measured against, and how it follows the policy |
| `activation_memory` | whether activations are kept for the backward pass, or computed twice |
| `recorded` | what a step was made of, for alarms |
| `texts` | what the texts of rollouts tell of a policy that goes wrong |
| `drift` | warns when engine and policy no longer agree |
| `metrics` | one reduction over passes, micro-batches and processes |
"""
