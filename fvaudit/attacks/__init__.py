"""Manipulations that hijack visualizations: a model in, a model and its certificate out."""

from fvaudit.attacks.adaptive import adaptive as adaptive
from fvaudit.attacks.certificate import Certificate as Certificate
from fvaudit.attacks.certificate import Manipulated as Manipulated
from fvaudit.attacks.circuit import fooling_circuit as fooling_circuit
from fvaudit.attacks.finetune import Goal as Goal
from fvaudit.attacks.finetune import Tuning as Tuning
from fvaudit.attacks.finetune import finetuned as finetuned
from fvaudit.attacks.gate import Gate as Gate
from fvaudit.attacks.proxpulse import proxpulse as proxpulse
from fvaudit.attacks.push import push as push
from fvaudit.attacks.silent import silent_units as silent_units
from fvaudit.attacks.slingshot import slingshot as slingshot
