"""Recipes in, models out. Each room imports those below it alone; `lint-imports` checks that (see pyproject.toml).

    cli, commands                    the command line: words in, words out
    planner, why                     what a recipe would take; replaying kept batches
    runner, cluster, tracking        running stages on this host or on several; mirrors of metrics
    recipe, checks, placement        reading a recipe, checking it whole, GPUs for each stage
    stages                           one module a stage kind
    search                           step labels and tree search, an experiment
    training, report, conversion     trainers; the report; import and export of models
    sampling                         judged samples, and scores of them
    tasks, data, rollout             problems; training rows; engines that sample
    prompts, context                 how questions become token ids; what a stage runs with
    records, artifacts               what a stage writes down; what it publishes
    files, gpus                      files on disk; the GPUs of this host
    schema, cost                     the pieces of a recipe; what models cost, as arithmetic

`corpora` (generated text) lies beside `training`.
"""
