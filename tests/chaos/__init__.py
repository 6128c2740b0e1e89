"""Kill everything, under load, with real processes, and check that nothing was lost, done twice or left stuck.

    python -m tests.chaos --kills 200 --seed 7

faults    what goes wrong and when: a plan made from a seed          (pure)
proxy     links between programs and broker that can be delayed, held, cut and reset
fleet     the processes: broker, chain, centrals, nodes; killed ones are started again
load      clients that submit, insist until they are answered, and write down what they were told
evidence  what can be known afterwards: the log, the chain, the ledgers, the artifacts, the processes
causes    which faults explain a loss, or a job that failed   (pure)
checker   which promises the evidence breaks                          (pure)
report    recovery times, goodput, the table                          (pure)
chaos     one round of all of it
"""
