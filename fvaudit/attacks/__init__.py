"""Manipulations that hijack visualizations: a model in, a model and its certificate out."""

from fvaudit.attacks.certificate import Certificate as Certificate
from fvaudit.attacks.certificate import Manipulated as Manipulated
from fvaudit.attacks.circuit import fooling_circuit as fooling_circuit
from fvaudit.attacks.gate import Gate as Gate
from fvaudit.attacks.silent import silent_units as silent_units
