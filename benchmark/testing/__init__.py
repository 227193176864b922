"""The contracts as a library: check a method, a dataset or a backbone of your own, registered or not.

Imports everything but `cli`. In a test file of your own package:

    import pytest
    from invbench.testing import checks_of_method, temporary_registrations
    from mine import WorstCase

    @pytest.mark.parametrize(("name", "check"), checks_of_method(WorstCase))
    def test_worst_case(name, check):
        check()                                 # AssertionError: which check, and what is wrong

    @pytest.fixture(autouse=True)
    def forget():                               # what a test registers is forgotten when it ends
        with temporary_registrations():
            yield

Each check protects one property; results and comparisons lean on all of them.

| check of a method | property |
|---|---|
| fusable_settings_are_numbers | what is marked fusable can be stacked |
| trains | a few steps are finite and move the parameters |
| hooks_are_pure | the same arguments give the same step and are left as they were |
| order_of_environments_does_not_matter | the step is a function of the set of environments |
| strategies_agree | one graph, a graph per environment and `vmap` give one gradient |
| whole_runs_can_be_mapped | runs that differ in seed and fusable settings can be trained as one |
| resumes_to_the_bit | a run that is stopped and taken up ends as one that is not |
| rule_adds_penalty | a gradient rule behind a penalty does not drop it |
| model_reports_what_is_learned | a model that wraps another one hands on what that has learned |
| penalty_heeds_its_weight | the weight changes the step |

| check of a dataset | property |
|---|---|
| provides_what_it_says | kind of input, task, environments and nuisance are those that methods are chosen by |
| optional_settings_turn_on | what is off by default is there with the settings that `optional` names |
| loading_is_pure | equal seeds give equal tensors, however often; the seed is left as it was |
| splits_are_sound | numbers are finite, labels and environments in range |
| trains | ERM trains on it |

| check of a backbone | property |
|---|---|
| predictions_have_the_right_shape | (N, outputs) in training and evaluation, for every kind and task |
| parameters_get_gradients | none is forgotten by the forward pass |
| building_is_pure | torch's generator alone decides the first weights |
| rows_do_not_mix_in_evaluation | the prediction of an example does not depend on its batch |
| takes_double_precision | nothing inside is fixed to float32 |
"""

from invbench.testing.checks import (
    check_backbone,
    check_dataset,
    check_method,
    checks_of_backbone,
    checks_of_dataset,
    checks_of_method,
)
from invbench.testing.registrations import temporary_registrations

__all__ = [
    "check_backbone",
    "check_dataset",
    "check_method",
    "checks_of_backbone",
    "checks_of_dataset",
    "checks_of_method",
    "temporary_registrations",
]
