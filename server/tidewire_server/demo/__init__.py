"""
The demonstration, `./run demo`: real data through all six kinds, over each wire in turn.

Begin with `operator`: a whole service of about 200 lines that loses and repeats nothing when it is
killed. The other modules drive it and compare what comes out with computations of their own.
"""
