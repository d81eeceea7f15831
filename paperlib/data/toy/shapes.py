"""The ten classes of the embedded data set, and buildings and trees, as they look from above."""

from __future__ import annotations

from collections.abc import Sequence
from math import cos, pi, sin, tau

import numpy as np

from paperlib.data.toy.canvas import Canvas, Colour, Point, Pose, Surface, arc, box, mirrored

WHITE: Colour = (238, 238, 232)
PAINT: Colour = (226, 228, 222, 210)
GLASS: Colour = (38, 46, 58)


def airplane(canvas: Canvas, pose: Pose) -> None:
    """Swept wings, engines, a tail and a coloured fin; the pose's heading is the nose's."""
    dice = canvas.dice
    span, sweep = dice.between(0.38, 0.5), dice.between(0.08, 0.3)
    root, chord = dice.between(0.08, 0.16), dice.between(0.16, 0.22)
    girth = dice.between(0.045, 0.06)
    body = dice.tint(dice.pick([WHITE, WHITE, (206, 210, 214)]), 10)
    wings = tuple(c - dice.count(8, 30) for c in body)
    trim = dice.pick([(190, 44, 40), (36, 66, 140), (226, 164, 40), (60, 70, 80), (30, 110, 92)])
    hull = mirrored([(0.5, 0), (0.47, 0.5 * girth), (0.41, girth), (-0.22, girth), (-0.5, 0.014)])
    wing = mirrored([(root, 0), (root - sweep, span), (root - sweep - 0.06, span), (root - chord, 0.04)])
    tail = mirrored([(-0.36, 0.02), (-0.44, 0.19), (-0.5, 0.19), (-0.46, 0.02)])
    with canvas.instance("airplane", pose):
        for part in (wing, tail, hull):
            canvas.shadow(pose.points(part), 0.09 * pose.size)
        for v in (-0.36 * span, 0.36 * span):
            front = root - 0.36 * sweep + 0.06
            canvas.fill(pose.points(box(front - 0.13, v - 0.024, front, v + 0.024)), tuple(c // 2 for c in body))
        canvas.fill(pose.points(wing), wings)
        canvas.fill(pose.points(tail), wings)
        canvas.fill(pose.points(hull), body)
        canvas.stroke(pose.points([(-0.33, 0), (-0.5, 0)]), 0.035 * pose.size, trim)
        canvas.stroke(pose.points([(0.44, -0.5 * girth), (0.44, 0.5 * girth)]), 0.03 * pose.size, GLASS)


def ship(canvas: Canvas, pose: Pose) -> None:
    """A freighter with containers or hatches, or, up to 24 units, a boat with a cabin; some make way."""
    dice, beam = canvas.dice, canvas.dice.between(0.11, 0.17)
    if dice.chance(0.45):
        foam: Colour = (236, 242, 242, 80)
        canvas.wash(pose.points(mirrored([(-0.4, 0.5 * beam), (-dice.between(0.8, 1.4), 0.8 * beam)])), foam)
        canvas.wash(pose.points(mirrored([(-0.4, 0.5 * beam), (-0.75, 0.4 * beam)])), foam)
        for flank in (-beam, beam):
            canvas.stroke(pose.points([(0.4, 0.9 * flank), (-dice.between(0.5, 0.9), 2.4 * flank)]), 0.7, foam)
    freighter = pose.size > 24
    rim = dice.tint(dice.pick([(120, 42, 38), (44, 56, 76), (70, 74, 78), (40, 84, 84)]) if freighter else WHITE, 16)
    deck = dice.tint(dice.pick([(150, 92, 74), (132, 138, 136), (92, 120, 104)]) if freighter else (206, 186, 152), 14)
    hull = mirrored([(0.5, 0), (0.42, 0.55 * beam), (0.28, beam), (-0.44, beam), (-0.5, 0.8 * beam)])
    with canvas.instance("ship", pose):
        canvas.shadow(pose.points(hull), 0.05 * pose.size)
        canvas.fill(pose.points(hull), rim)
        canvas.fill(pose.points([(0.9 * u, 0.76 * v) for u, v in hull]), deck)
        (_freight if freighter else _cabin)(canvas, pose, beam)


def _cabin(canvas: Canvas, pose: Pose, beam: float) -> None:
    canvas.fill(pose.points(box(-0.2, -0.62 * beam, 0.16, 0.62 * beam)), canvas.dice.tint((226, 228, 228), 10))
    canvas.fill(pose.points(box(0.1, -0.6 * beam, 0.2, 0.6 * beam)), GLASS)


def _freight(canvas: Canvas, pose: Pose, beam: float) -> None:
    dice = canvas.dice
    boxes = [(176, 66, 48), (52, 92, 148), (198, 156, 64), (96, 132, 92), (186, 188, 184)]
    loaded, bays = dice.chance(0.7), dice.count(3, 5)
    for bay in range(bays):
        u = -0.2 + 0.5 * bay / bays
        if loaded:
            canvas.fill(pose.points(box(u, -0.68 * beam, u + 0.4 / bays, 0.0)), dice.tint(dice.pick(boxes)))
            canvas.fill(pose.points(box(u, 0.0, u + 0.4 / bays, 0.68 * beam)), dice.tint(dice.pick(boxes)))
        else:
            canvas.fill(pose.points(box(u, -0.4 * beam, u + 0.3 / bays, 0.4 * beam)), (74, 66, 62))
    bridge = pose.points(box(-0.42, -0.7 * beam, -0.29, 0.7 * beam))
    canvas.shadow(bridge, 0.06 * pose.size)
    canvas.fill(bridge, WHITE)
    canvas.stroke(pose.points([(-0.29, -0.6 * beam), (-0.29, 0.6 * beam)]), 0.7, GLASS)


def storage_tank(canvas: Canvas, pose: Pose) -> None:
    """A round tank as wide as the pose is long, with a fixed or a floating roof."""
    dice, radius = canvas.dice, pose.size / 2
    wall = dice.tint(dice.pick([WHITE, WHITE, (202, 204, 200)]), 10)
    floating = dice.chance(0.4)
    ring = Pose(pose.x, pose.y, 0.0, radius)
    canvas.shadow(ring.points(arc(0, 0, 1, 0, tau, 24)), dice.between(0.35, 0.7) * radius)
    with canvas.instance("storage tank", pose):
        canvas.disc(pose.x, pose.y, radius, tuple(c * 3 // 4 for c in wall))
        canvas.disc(pose.x, pose.y, 0.9 * radius, wall)
    if floating:
        canvas.wash(ring.points(arc(0, 0, 0.8, 0, tau, 20)), (24, 30, 40, 110))
        x, y = canvas.lit(pose.x, pose.y, -0.16 * radius)
        canvas.wash(Pose(x, y, 0, radius).points(arc(0, 0, 0.66, 0, tau, 20)), (*wall[:3], 190))
        return
    x, y = canvas.lit(0, 0, 1.0)
    towards = np.arctan2(y, x)
    canvas.wash(ring.points(arc(0, 0, 0.9, towards + pi / 2, towards + 3 * pi / 2)), (30, 34, 44, 34))
    canvas.stroke(pose.points([(0, 0), (0.47, 0)]), 0.5, (96, 96, 96, 150))
    canvas.wash(ring.points(arc(0, 0, 0.18, 0, tau, 8)), (96, 98, 100, 150))


def baseball_diamond(canvas: Canvas, pose: Pose) -> None:
    """Dirt, infield and bases opening along u from home plate; the outfield is ground, no part of the object."""
    dice, home, base = canvas.dice, (-0.45, 0.0), 0.6
    dirt = dice.tint(dice.pick([(184, 132, 90), (168, 108, 74), (196, 156, 112)]), 12)
    lawn = dice.tint(dice.pick([(92, 128, 62), (76, 116, 58), (116, 134, 74)]), 10)
    with canvas.on(Surface.LAWN):
        reach = dice.between(1.5, 1.9)
        canvas.fill(pose.points([home, *arc(*home, reach + 0.06, -pi / 4, pi / 4)]), dice.tint(dirt, 6))
        canvas.fill(pose.points([home, *arc(*home, reach, -pi / 4, pi / 4)]), lawn)
    with canvas.instance("baseball diamond", pose):
        canvas.fill(pose.points([home, *arc(*home, 0.95, -pi / 4, pi / 4)]), dirt)
        canvas.disc(*pose.points([home])[0], 0.12 * pose.size, dirt)
        infield = [(home[0] + base * (i + j) * 0.7071, base * (j - i) * 0.7071) for i, j in _DIAMOND]
        canvas.fill(pose.points(infield), dice.tint(lawn, 8))
        canvas.disc(*pose.points([(home[0] + 0.7 * base, 0)])[0], 0.06 * pose.size, dirt)
    corners = [(home[0] + base * (i + j) * 0.7071, base * (j - i) * 0.7071) for i, j in ((1, 0), (1, 1), (0, 1))]
    for x, y in pose.points(corners):
        canvas.stroke([(x - 0.5, y), (x + 0.5, y)], 1.0, WHITE)
    for turn in (-pi / 4, pi / 4):
        foul = [home, (home[0] + 1.45 * cos(turn), 1.45 * sin(turn))]
        canvas.stroke(pose.points(foul), 0.6, PAINT)


_DIAMOND = ((0.12, 0.12), (0.9, 0.12), (0.9, 0.9), (0.12, 0.9))


def _lines(canvas: Canvas, pose: Pose, width: float, *strokes: Sequence[Point]) -> None:
    for local in strokes:
        canvas.stroke(pose.points(local), width, PAINT)


def tennis_court(canvas: Canvas, pose: Pose, colours: tuple[Colour, Colour]) -> None:
    """A court with its apron, length 1 and width 0.5; courts of one row share their two colours."""
    with canvas.instance("tennis court", pose):
        canvas.fill(pose.points(box(-0.5, -0.25, 0.5, 0.25)), canvas.dice.tint(colours[0], 4))
        canvas.fill(pose.points(box(-0.34, -0.16, 0.34, 0.16)), canvas.dice.tint(colours[1], 4))
    court, singles = box(-0.34, -0.16, 0.34, 0.16), [[(-0.34, v), (0.34, v)] for v in (-0.115, 0.115)]
    service = [[(u, -0.115), (u, 0.115)] for u in (-0.18, 0.18)]
    _lines(canvas, pose, 0.5, [*court, court[0]], *singles, *service, [(-0.18, 0), (0.18, 0)])
    canvas.stroke(pose.points([(0, -0.19), (0, 0.19)]), 0.6, (30, 36, 40))


def basketball_court(canvas: Canvas, pose: Pose, colours: tuple[Colour, Colour]) -> None:
    """A court of length 1 and width 0.56; floor and painted areas in two colours."""
    floor, key = colours
    with canvas.instance("basketball court", pose):
        canvas.fill(pose.points(box(-0.5, -0.28, 0.5, 0.28)), canvas.dice.tint(floor, 4))
        for end in (-1, 1):
            canvas.fill(pose.points(box(end * 0.47, -0.085, end * 0.27, 0.085)), key)
        canvas.fill(pose.points(arc(0, 0, 0.085, 0, tau, 16)), key)
    edge = box(-0.47, -0.25, 0.47, 0.25)
    _lines(canvas, pose, 0.55, [*edge, edge[0]], [(0, -0.25), (0, 0.25)], arc(0, 0, 0.085, 0, tau, 16))
    for turn in (0, pi):
        end = pose.at(-0.47 * cos(turn), 0, turn, pose.size)
        three = [(0, -0.22), *arc(0.06, 0, 0.22, -pi / 2, pi / 2), (0, 0.22)]
        _lines(canvas, end, 0.55, three, [(0, -0.085), (0.2, -0.085), (0.2, 0.085), (0, 0.085)])


def ground_track_field(canvas: Canvas, pose: Pose) -> None:
    """An oval running track around a lawn, length 1 along u."""
    dice, radius = canvas.dice, canvas.dice.between(0.23, 0.29)
    track = dice.tint(dice.pick([(168, 82, 64), (176, 92, 70)]), 12)
    lawn = dice.tint(dice.pick([(84, 128, 62), (106, 136, 70), (130, 134, 82)]), 10)
    straight, lanes = 0.5 - radius, 0.06

    def oval(inset: float) -> list[Point]:
        left = arc(-straight, 0, radius - inset, pi / 2, 3 * pi / 2)
        return [*arc(straight, 0, radius - inset, -pi / 2, pi / 2), *left]

    with canvas.instance("ground track field", pose):
        canvas.fill(pose.points(oval(0)), track)
        canvas.fill(pose.points(oval(lanes)), dice.tint(track, 22) if dice.chance(0.35) else lawn)
        half = min(straight, 0.3), radius - lanes - 0.02
        canvas.fill(pose.points(box(-half[0], -half[1], half[0], half[1])), lawn)
    for stripe in range(0, 8, 2):
        u = half[0] * (stripe / 4 - 1)
        canvas.wash(pose.points(box(u, -half[1], u + half[0] / 4, half[1])), (255, 255, 220, 20))
    pitch = box(-half[0], -half[1], half[0], half[1])
    middle = [(0, -half[1]), (0, half[1])]
    _lines(canvas, pose, 0.5, [*pitch, pitch[0]], middle, arc(0, 0, 0.05, 0, tau, 10))
    for inset in (0.002, lanes / 2, lanes):
        ring = pose.points(oval(inset))
        canvas.stroke([*ring, ring[0]], 0.35, (236, 226, 214, 120))


def harbor(canvas: Canvas, pose: Pose) -> None:
    """A pier of length 1 out from the shore (u = -0.5), fingers on both sides, boats moored between them."""
    dice = canvas.dice
    wood = dice.tint(dice.pick([(186, 180, 168), (166, 148, 122), (202, 202, 198)]), 12)
    spine, steps = dice.between(0.03, 0.05), dice.count(4, 6)
    reach = {side: dice.between(0.16, 0.34) for side in (-1, 1)}
    with canvas.instance("harbor", pose):
        walk = pose.points(box(-0.5, -spine, 0.5, spine))
        canvas.shadow(walk, 1.2)
        canvas.fill(walk, wood)
        for step, side in ((i, s) for i in range(steps) for s in (-1, 1)):
            u, tip = -0.28 + 0.76 * step / (steps - 1), side * reach[side] * dice.between(0.75, 1.0)
            finger = pose.points(box(u - 0.016, 0, u + 0.016, tip))
            canvas.shadow(finger, 0.8)
            canvas.fill(finger, wood)
            for berth in (u - 0.05, u + 0.05):
                if dice.chance(0.6):
                    _moored(canvas, pose.at(berth, 0.62 * tip, side * pi / 2, 0.7 * abs(tip) * pose.size))


def _moored(canvas: Canvas, pose: Pose) -> None:
    hull = mirrored([(0.5, 0), (0.2, 0.17), (-0.5, 0.15)])
    canvas.fill(pose.points(hull), canvas.dice.tint((222, 224, 222), 18))
    canvas.wash(pose.points(box(-0.3, -0.08, 0.1, 0.08)), (70, 84, 110, 200))


def bridge(canvas: Canvas, pose: Pose, width: float) -> None:
    """A deck of length 1 and `width` units along u: parapets, ribs, lanes, a shadow on what it crosses."""
    dice, half = canvas.dice, width / 2 / pose.size
    deck = dice.tint(dice.pick([(188, 186, 178), (166, 166, 164), (202, 192, 170), (150, 138, 126)]), 12)
    parapet = tuple(min(255, c + 36) for c in deck)
    canvas.shadow(pose.points(box(-0.47, -half, 0.47, half)), dice.between(3, 5))
    with canvas.instance("bridge", pose):
        for u in (-0.5, 0.44):
            canvas.fill(pose.points(box(u, -1.22 * half, u + 0.06, 1.22 * half)), parapet)
        canvas.fill(pose.points(box(-0.5, -half, 0.5, half)), deck)
    for v in (-0.88 * half, 0.88 * half):
        canvas.stroke(pose.points([(-0.5, v), (0.5, v)]), 0.8, parapet)
        canvas.stroke(pose.points([(-0.5, 0.8 * v), (0.5, 0.8 * v)]), 0.4, (70, 70, 70, 140))
    if dice.chance(0.4):
        for rib in range(9):
            u = -0.44 + 0.11 * rib
            canvas.stroke(pose.points([(u, -half), (u, half)]), 0.6, (92, 96, 100, 170))
    for dash in range(8):
        u = -0.46 + 0.12 * dash
        canvas.stroke(pose.points([(u, 0), (u + 0.06, 0)]), 0.4, PAINT)


def vehicle(canvas: Canvas, pose: Pose) -> None:
    """A car, or from 12 units on a truck; the pose's heading is the front's."""
    dice, wide = canvas.dice, 0.21
    paint = dice.pick([WHITE, WHITE, (176, 40, 36), (40, 72, 148), (222, 184, 60)])
    paint, truck = dice.tint(paint, 12), pose.size > 12
    shell = pose.points(mirrored([(0.5, 0.7 * wide), (0.44, wide), (-0.46, wide), (-0.5, 0.8 * wide)]))
    canvas.shadow(shell, 1.6 if truck else 1.1)
    with canvas.instance("vehicle", pose):
        canvas.fill(shell, paint)
        if truck:
            canvas.fill(pose.points(box(-0.5, -wide, 0.2, wide)), dice.tint((208, 208, 204), 24))
        canvas.fill(pose.points(box(0.26, -0.16, 0.36, 0.16) if truck else box(0.1, -0.16, 0.26, 0.16)), GLASS)
        if not truck:
            canvas.fill(pose.points(box(-0.38, -0.15, -0.27, 0.15)), GLASS)


def tree(canvas: Canvas, x: float, y: float, radius: float) -> None:
    """A crown of overlapping discs, lit from the sun's side."""
    dice = canvas.dice
    leaf = dice.tint(dice.pick([(58, 84, 48), (70, 92, 50), (48, 76, 52), (84, 96, 56)]), 8)
    canvas.shadow(Pose(x, y, 0, radius).points(arc(0, 0, 1, 0, tau, 10)), 0.9 * radius)
    with canvas.on(Surface.TREE):
        for i in range(3):
            dx, dy = radius * dice.between(-0.4, 0.4), radius * dice.between(-0.4, 0.4)
            canvas.disc(x + dx, y + dy, radius * dice.between(0.5, 0.8), tuple(c - 14 + 6 * i for c in leaf))
        canvas.disc(*canvas.lit(x, y, 0.35 * radius), 0.4 * radius, tuple(c + 18 for c in leaf))


def building(canvas: Canvas, pose: Pose, width: float) -> None:
    """A roof of length 1 and `width` units: gabled, or flat with a parapet and machinery."""
    dice, half = canvas.dice, width / 2 / pose.size
    roof = dice.tint(dice.pick([(150, 84, 66), (128, 120, 116), (176, 170, 162), (98, 104, 116), (160, 130, 104)]))
    outline = pose.points(box(-0.5, -half, 0.5, half))
    canvas.shadow(outline, dice.between(3, 6))
    with canvas.on(Surface.BUILT):
        canvas.fill(outline, roof)
        if dice.chance(0.5):
            canvas.fill(pose.points(box(-0.5, 0, 0.5, half)), tuple(max(0, c - 26) for c in roof))
            return
        canvas.fill(pose.points(box(-0.46, -0.84 * half, 0.46, 0.84 * half)), tuple(max(0, c - 12) for c in roof))
        for _ in range(dice.count(1, 4)):
            unit = pose.at(dice.between(-0.36, 0.36), half * dice.between(-0.6, 0.6), 0, dice.between(1.5, 3.5))
            canvas.fill(unit.points(box(-0.5, -0.4, 0.5, 0.4)), dice.tint((190, 190, 188), 20))
