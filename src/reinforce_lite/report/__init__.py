"""Run directories to one HTML file that opens anywhere: no network, no server, no second file.

    config.toml steps.jsonl evals.jsonl summary.json ──▶ result, progress, curves, costs ──┐
    rollouts.jsonl eval_rollouts.jsonl ──▶ eval_history, reflection, excerpts, selection ──┴─▶ build ──▶ page
                                                                    of several runs: build ──▶ comparison ──┘

`write.write_report` writes the page of one run or several; `refresher.ReportRefresher` keeps it up to date
while a run trains.

The report reads the run directory and nothing else, so it works alike for a run in progress, a run that was
killed and a run from another machine. A few hundred lines of JavaScript draw the curves: a plotting library
would make each file 4 MB larger and its text no safer.

    reinforce-lite report RUN [RUN ...]
"""
