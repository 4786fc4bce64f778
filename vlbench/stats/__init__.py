"""Statistics of seeds x queries: estimates, intervals, tests, corrections and verdicts.

One array convention everywhere: rows are seeds, columns are queries, values are fractions (0..1) unless a name says
points. Every function refuses NaN and holes with a DataError, and draws its random numbers from a stream keyed by
the data itself.
"""
