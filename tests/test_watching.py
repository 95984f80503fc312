"""A step that is watched computes what it computes unwatched, and what is shown rises to nearly the whole."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from explorer.papers import paper
from explorer.reproduction.rehearsal import rehearse
from explorer.reproduction.watching import SHARE, watched


def step(student, teacher):
    x = torch.linspace(-1, 1, 8).reshape(4, 2)
    for _ in range(2):  # run twice, counted once
        out = student(x)
    (out - teacher(x)).square().mean().backward(inputs=list(student.parameters()))
    return [p.grad.clone() for p in student.parameters()]


@pytest.fixture(name="networks")
def _networks():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        student, teacher = (nn.Sequential(nn.Linear(2, 16), nn.Tanh(), nn.Linear(16, 2)) for _ in range(2))
    return student, teacher.requires_grad_(False)


def test_the_fraction_rises_with_layers_and_gradients_and_the_step_is_the_same(networks):
    student, teacher = networks
    expected, shown = step(student, teacher), []
    student.zero_grad(set_to_none=True)
    with watched({"student": student, "teacher": teacher}, lambda f, words: shown.append((f, words))):
        watched_gradients = step(student, teacher)
    assert all(torch.equal(a, b) for a, b in zip(expected, watched_gradients, strict=True))
    fractions = [f for f, _ in shown]
    assert fractions == sorted(set(fractions)) and fractions[-1] == pytest.approx(SHARE)
    # 82 parameters each, layers of 48 and 34: 82 forward and 164 back of the student, 82 forward of the teacher
    assert fractions[:2] == pytest.approx([SHARE * 48 / 328, SHARE * 82 / 328])
    assert shown[2][1] == "one step: forward through teacher" and shown[-1][1] == "one step: back through student"


def test_nothing_is_left_behind_even_after_an_error(networks):
    student, teacher = networks
    with pytest.raises(RuntimeError), watched({"student": student}, lambda f, words: None):
        student(torch.zeros(3, 5))
    shown = []
    step(student, teacher)
    assert not shown and not any(m._forward_hooks for m in student.modules())
    assert not any(p._post_accumulate_grad_hooks for p in student.parameters())


def test_a_copy_made_meanwhile_is_not_counted(networks):
    student, _ = networks
    shown = []
    with watched({"student": student}, lambda f, words: shown.append(f)):
        average = copy.deepcopy(student)
        average(torch.zeros(3, 2))
    average(torch.zeros(3, 2))
    assert not shown


def test_a_rehearsal_tells_what_it_builds_and_how_far_its_step_is():
    shown = []
    rehearse(paper("rfpp").recipe("digits"), show=lambda f, words: shown.append((f, words)))
    fractions, words = zip(*shown, strict=True)
    assert list(fractions) == sorted(fractions) and 0.9 < fractions[-1] < 1
    assert (
        words[0] == "building teacher"
        and "building what is trained" in words
        and words[-1] == "one step: back through net"
    )
