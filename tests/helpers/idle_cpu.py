"""A script that tells how much processor time an engine's threads take after runs, while nothing runs."""

SCRIPT = """
import sys, time
import numpy as np
from corepipe import engine
from corepipe.network import zoo

chosen = engine.get(sys.argv[1])
chosen.dedicate(2, alone=False)
compiled = chosen.compile(zoo.build("squeezenet").SerializeToString(), 2)
call = compiled.bind({"data": np.ones((1, 3, 227, 227), np.float32)}, {"prob": np.zeros((1, 1000), np.float32)})
for _ in range(5):
    call()
    before = time.process_time()
    time.sleep(0.05)
    print(time.process_time() - before)
"""
