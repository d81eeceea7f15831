"""The ten classes of the embedded data set, and buildings and trees, as they look from above."""

from __future__ import annotations

from collections.abc import Sequence
from math import cos, pi, sin

import numpy as np

from paperlib.data.toy.canvas import Canvas, Colour, Point, Pose, Surface, arc, box, centred_box, loop, mirrored, shade

WHITE: Colour = (238, 238, 232)
PAINT: Colour = (226, 228, 222, 210)
GLASS: Colour = (38, 46, 58)


def paint_lines(canvas: Canvas, pose: Pose, width: float, *lines: Sequence[Point]) -> None:
    """Paint white lines, given in local coordinates, `width` units wide."""
    for local in lines:
        canvas.stroke(pose.points(local), width, PAINT)


def draw_airplane(canvas: Canvas, pose: Pose) -> None:
    """Draw swept wings, engines, a tail and a coloured fin; the pose's heading is the nose's."""
    dice = canvas.dice
    span, sweep = dice.between(0.38, 0.5), dice.between(0.08, 0.3)
    root, chord = dice.between(0.08, 0.16), dice.between(0.16, 0.22)
    girth = dice.between(0.045, 0.06)
    body = dice.pick_tint([WHITE, WHITE, (206, 210, 214)], 10)
    wings = tuple(c - dice.integer(8, 30) for c in body)
    trim = dice.pick([(190, 44, 40), (36, 66, 140), (226, 164, 40), (60, 70, 80), (30, 110, 92)])
    hull = mirrored([(0.5, 0), (0.47, 0.5 * girth), (0.41, girth), (-0.22, girth), (-0.5, 0.014)])
    wing = mirrored([(root, 0), (root - sweep, span), (root - sweep - 0.06, span), (root - chord, 0.04)])
    tail = mirrored([(-0.36, 0.02), (-0.44, 0.19), (-0.5, 0.19), (-0.46, 0.02)])
    with canvas.new_object("airplane", pose):
        # All shadows come first, so that none darkens another part of the airplane.
        for part in (wing, tail, hull):
            canvas.shadow(pose.points(part), 0.09 * pose.size)
        # Engines hang below the wings, so they come first.
        front = root - 0.36 * sweep + 0.06
        for v in (-0.36 * span, 0.36 * span):
            canvas.fill(pose.points(box(front - 0.13, v - 0.024, front, v + 0.024)), tuple(c // 2 for c in body))
        for part, colour in ((wing, wings), (tail, wings), (hull, body)):
            canvas.fill(pose.points(part), colour)
        canvas.stroke(pose.points([(-0.33, 0), (-0.5, 0)]), 0.035 * pose.size, trim)
        canvas.stroke(pose.points([(0.44, -0.5 * girth), (0.44, 0.5 * girth)]), 0.03 * pose.size, GLASS)


def draw_ship(canvas: Canvas, pose: Pose) -> None:
    """Draw a freighter with containers or hatches, or, up to 24 units, a boat with a cabin; some make way."""
    dice, beam = canvas.dice, canvas.dice.between(0.11, 0.17)
    # A ship under way: wake and bow waves lie on the water, below the hull.
    if dice.chance(0.45):
        foam: Colour = (236, 242, 242, 80)
        canvas.wash(pose.points(mirrored([(-0.4, 0.5 * beam), (-dice.between(0.8, 1.4), 0.8 * beam)])), foam)
        canvas.wash(pose.points(mirrored([(-0.4, 0.5 * beam), (-0.75, 0.4 * beam)])), foam)
        for flank in (-beam, beam):
            canvas.stroke(pose.points([(0.4, 0.9 * flank), (-dice.between(0.5, 0.9), 2.4 * flank)]), 0.7, foam)
    freighter = pose.size > 24
    rims = [(120, 42, 38), (44, 56, 76), (70, 74, 78), (40, 84, 84)]
    decks = [(150, 92, 74), (132, 138, 136), (92, 120, 104)]
    rim = dice.pick_tint(rims, 16) if freighter else dice.tint(WHITE, 16)
    deck = dice.pick_tint(decks) if freighter else dice.tint((206, 186, 152))
    hull = mirrored([(0.5, 0), (0.42, 0.55 * beam), (0.28, beam), (-0.44, beam), (-0.5, 0.8 * beam)])
    with canvas.new_object("ship", pose):
        canvas.block(pose.points(hull), 0.05 * pose.size, rim)
        canvas.fill(pose.points([(0.9 * u, 0.76 * v) for u, v in hull]), deck)
        if freighter:
            _draw_freight(canvas, pose, beam)
        else:
            canvas.fill(pose.points(box(-0.2, -0.62 * beam, 0.16, 0.62 * beam)), dice.tint((226, 228, 228), 10))
            canvas.fill(pose.points(box(0.1, -0.6 * beam, 0.2, 0.6 * beam)), GLASS)


def _draw_freight(canvas: Canvas, pose: Pose, beam: float) -> None:
    """Draw bays of containers or hatches, and the bridge."""
    dice = canvas.dice
    boxes = [(176, 66, 48), (52, 92, 148), (198, 156, 64), (96, 132, 92), (186, 188, 184)]
    loaded, bays = dice.chance(0.7), dice.integer(3, 5)
    for bay in range(bays):
        u = -0.2 + 0.5 * bay / bays
        if loaded:
            canvas.fill(pose.points(box(u, -0.68 * beam, u + 0.4 / bays, 0.0)), dice.pick_tint(boxes))
            canvas.fill(pose.points(box(u, 0.0, u + 0.4 / bays, 0.68 * beam)), dice.pick_tint(boxes))
        else:
            canvas.fill(pose.points(box(u, -0.4 * beam, u + 0.3 / bays, 0.4 * beam)), (74, 66, 62))
    canvas.block(pose.points(box(-0.42, -0.7 * beam, -0.29, 0.7 * beam)), 0.06 * pose.size, WHITE)
    canvas.stroke(pose.points([(-0.29, -0.6 * beam), (-0.29, 0.6 * beam)]), 0.7, GLASS)


def draw_storage_tank(canvas: Canvas, pose: Pose) -> None:
    """Draw a round tank as wide as the pose is long, with a fixed or a floating roof."""
    dice, radius = canvas.dice, pose.size / 2
    wall = dice.pick_tint([WHITE, WHITE, (202, 204, 200)], 10)
    floating = dice.chance(0.4)
    ring = Pose(pose.x, pose.y, 0.0, radius)
    canvas.shadow(ring.points(arc(0, 0, 1, steps=24)), dice.between(0.35, 0.7) * radius)
    with canvas.new_object("storage tank", pose):
        canvas.disc(pose.x, pose.y, radius, tuple(c * 3 // 4 for c in wall))
        canvas.disc(pose.x, pose.y, 0.9 * radius, wall)
    # A floating roof lies in the shade of the wall, a fixed one has a dark side.
    if floating:
        canvas.wash(ring.points(arc(0, 0, 0.8, steps=20)), (24, 30, 40, 110))
        x, y = canvas.towards_sun(pose.x, pose.y, -0.16 * radius)
        canvas.wash(Pose(x, y, 0, radius).points(arc(0, 0, 0.66, steps=20)), (*wall[:3], 190))
        return
    x, y = canvas.towards_sun(0, 0, 1.0)
    sun = np.arctan2(y, x)
    canvas.wash(ring.points(arc(0, 0, 0.9, sun + pi / 2, sun + 3 * pi / 2)), (30, 34, 44, 34))
    canvas.stroke(pose.points([(0, 0), (0.47, 0)]), 0.5, (96, 96, 96, 150))
    canvas.wash(ring.points(arc(0, 0, 0.18, steps=8)), (96, 98, 100, 150))


def draw_baseball_diamond(canvas: Canvas, pose: Pose) -> None:
    """Draw dirt, infield and bases opening along u from home plate; the outfield is ground, no part of the object."""
    dice, home, base = canvas.dice, (-0.45, 0.0), 0.6
    dirt = dice.pick_tint([(184, 132, 90), (168, 108, 74), (196, 156, 112)], 12)
    lawn = dice.pick_tint([(92, 128, 62), (76, 116, 58), (116, 134, 74)], 10)

    def sector(radius: float) -> list[Point]:
        return pose.points([home, *arc(*home, radius, -pi / 4, pi / 4)])

    def along_foul_lines(*corners: Point) -> list[Point]:
        return pose.points([(home[0] + base * (i + j) * 0.7071, base * (j - i) * 0.7071) for i, j in corners])

    reach = dice.between(1.5, 1.9)
    canvas.fill(sector(reach + 0.06), dice.tint(dirt, 6), Surface.LAWN)
    canvas.fill(sector(reach), lawn, Surface.LAWN)
    with canvas.new_object("baseball diamond", pose):
        canvas.fill(sector(0.95), dirt)
        canvas.disc(*pose.points([home])[0], 0.12 * pose.size, dirt)
        canvas.fill(along_foul_lines(*box(0.12, 0.12, 0.9, 0.9)), dice.tint(lawn, 8))
        canvas.disc(*pose.points([(home[0] + 0.7 * base, 0)])[0], 0.06 * pose.size, dirt)
    # Bases are painted, which leaves the owner as it is.
    for x, y in along_foul_lines((1, 0), (1, 1), (0, 1)):
        canvas.stroke([(x - 0.5, y), (x + 0.5, y)], 1.0, WHITE)
    for turn in (-pi / 4, pi / 4):
        paint_lines(canvas, pose, 0.6, [home, (home[0] + 1.45 * cos(turn), 1.45 * sin(turn))])


def draw_tennis_court(canvas: Canvas, pose: Pose, colours: tuple[Colour, Colour]) -> None:
    """Draw a court with its apron, length 1 and width 0.5; courts of one row share their two colours."""
    court = centred_box(0.34, 0.16)
    with canvas.new_object("tennis court", pose):
        canvas.fill(pose.points(centred_box(0.5, 0.25)), canvas.dice.tint(colours[0], 4))
        canvas.fill(pose.points(court), canvas.dice.tint(colours[1], 4))
    singles = [[(-0.34, v), (0.34, v)] for v in (-0.115, 0.115)]
    service = [[(u, -0.115), (u, 0.115)] for u in (-0.18, 0.18)]
    paint_lines(canvas, pose, 0.5, loop(court), *singles, *service, [(-0.18, 0), (0.18, 0)])
    canvas.stroke(pose.points([(0, -0.19), (0, 0.19)]), 0.6, (30, 36, 40))


def draw_basketball_court(canvas: Canvas, pose: Pose, colours: tuple[Colour, Colour]) -> None:
    """Draw a court of length 1 and width 0.56; floor and painted areas in two colours."""
    floor, key = colours
    circle = arc(0, 0, 0.085, steps=16)
    with canvas.new_object("basketball court", pose):
        canvas.fill(pose.points(centred_box(0.5, 0.28)), canvas.dice.tint(floor, 4))
        for end in (-1, 1):
            canvas.fill(pose.points(box(end * 0.47, -0.085, end * 0.27, 0.085)), key)
        canvas.fill(pose.points(circle), key)
    paint_lines(canvas, pose, 0.55, loop(centred_box(0.47, 0.25)), [(0, -0.25), (0, 0.25)], circle)
    # The same lines at both ends of the court.
    for turn in (0, pi):
        end = pose.at(-0.47 * cos(turn), 0, turn, pose.size)
        three = [(0, -0.22), *arc(0.06, 0, 0.22, -pi / 2, pi / 2), (0, 0.22)]
        paint_lines(canvas, end, 0.55, three, [(0, -0.085), (0.2, -0.085), (0.2, 0.085), (0, 0.085)])


def draw_ground_track_field(canvas: Canvas, pose: Pose) -> None:
    """Draw an oval running track around a lawn, length 1 along u."""
    dice, radius = canvas.dice, canvas.dice.between(0.23, 0.29)
    track = dice.pick_tint([(168, 82, 64), (176, 92, 70)], 12)
    lawn = dice.pick_tint([(84, 128, 62), (106, 136, 70), (130, 134, 82)], 10)
    straight, lanes = 0.5 - radius, 0.06

    def oval(inset: float) -> list[Point]:
        left = arc(-straight, 0, radius - inset, pi / 2, 3 * pi / 2)
        return pose.points([*arc(straight, 0, radius - inset, -pi / 2, pi / 2), *left])

    length, width = min(straight, 0.3), radius - lanes - 0.02
    pitch = centred_box(length, width)
    with canvas.new_object("ground track field", pose):
        canvas.fill(oval(0), track)
        canvas.fill(oval(lanes), dice.tint(track, 22) if dice.chance(0.35) else lawn)
        canvas.fill(pose.points(pitch), lawn)
    # Every second stripe of the lawn is mown the other way.
    for stripe in range(0, 8, 2):
        u = length * (stripe / 4 - 1)
        canvas.wash(pose.points(box(u, -width, u + length / 4, width)), (255, 255, 220, 20))
    paint_lines(canvas, pose, 0.5, loop(pitch), [(0, -width), (0, width)], arc(0, 0, 0.05, steps=10))
    for inset in (0.002, lanes / 2, lanes):
        canvas.stroke(loop(oval(inset)), 0.35, (236, 226, 214, 120))


def draw_harbor(canvas: Canvas, pose: Pose) -> None:
    """Draw a pier of length 1 out from the shore (u = -0.5), fingers on both sides, boats moored between them."""
    dice = canvas.dice
    wood = dice.pick_tint([(186, 180, 168), (166, 148, 122), (202, 202, 198)], 12)
    spine, steps = dice.between(0.03, 0.05), dice.integer(4, 6)
    reach = {side: dice.between(0.16, 0.34) for side in (-1, 1)}
    with canvas.new_object("harbor", pose):
        canvas.block(pose.points(centred_box(0.5, spine)), 1.2, wood)
        for step in range(steps):
            u = -0.28 + 0.76 * step / (steps - 1)
            for side in (-1, 1):
                tip = side * reach[side] * dice.between(0.75, 1.0)
                canvas.block(pose.points(box(u - 0.016, 0, u + 0.016, tip)), 0.8, wood)
                for berth in (u - 0.05, u + 0.05):
                    if dice.chance(0.6):
                        _draw_boat(canvas, pose.at(berth, 0.62 * tip, side * pi / 2, 0.7 * abs(tip) * pose.size))


def _draw_boat(canvas: Canvas, pose: Pose) -> None:
    hull = mirrored([(0.5, 0), (0.2, 0.17), (-0.5, 0.15)])
    canvas.fill(pose.points(hull), canvas.dice.tint((222, 224, 222), 18))
    canvas.wash(pose.points(box(-0.3, -0.08, 0.1, 0.08)), (70, 84, 110, 200))


def draw_bridge(canvas: Canvas, pose: Pose, width: float) -> None:
    """Draw a deck of length 1 and `width` units along u: parapets, ribs, lanes, a shadow on what it crosses."""
    dice, half = canvas.dice, width / 2 / pose.size
    deck = dice.pick_tint([(188, 186, 178), (166, 166, 164), (202, 192, 170), (150, 138, 126)], 12)
    parapet = shade(deck, 36)
    canvas.shadow(pose.points(centred_box(0.47, half)), dice.between(3, 5))
    with canvas.new_object("bridge", pose):
        for u in (-0.5, 0.44):
            canvas.fill(pose.points(box(u, -1.22 * half, u + 0.06, 1.22 * half)), parapet)
        canvas.fill(pose.points(centred_box(0.5, half)), deck)
    for v in (-0.88 * half, 0.88 * half):
        canvas.stroke(pose.points([(-0.5, v), (0.5, v)]), 0.8, parapet)
        canvas.stroke(pose.points([(-0.5, 0.8 * v), (0.5, 0.8 * v)]), 0.4, (70, 70, 70, 140))
    if dice.chance(0.4):
        for rib in range(9):
            u = -0.44 + 0.11 * rib
            canvas.stroke(pose.points([(u, -half), (u, half)]), 0.6, (92, 96, 100, 170))
    paint_lines(canvas, pose, 0.4, *([(-0.46 + 0.12 * i, 0), (-0.46 + 0.12 * i + 0.06, 0)] for i in range(8)))


def draw_vehicle(canvas: Canvas, pose: Pose) -> None:
    """Draw a car, or from 12 units on a truck; the pose's heading is the front's."""
    dice, wide = canvas.dice, 0.21
    paint = dice.pick_tint([WHITE, WHITE, (176, 40, 36), (40, 72, 148), (222, 184, 60)], 12)
    truck = pose.size > 12
    shell = pose.points(mirrored([(0.5, 0.7 * wide), (0.44, wide), (-0.46, wide), (-0.5, 0.8 * wide)]))
    with canvas.new_object("vehicle", pose):
        canvas.block(shell, 1.6 if truck else 1.1, paint)
        if truck:
            canvas.fill(pose.points(box(-0.5, -wide, 0.2, wide)), dice.tint((208, 208, 204), 24))
            canvas.fill(pose.points(box(0.26, -0.16, 0.36, 0.16)), GLASS)
        else:
            canvas.fill(pose.points(box(0.1, -0.16, 0.26, 0.16)), GLASS)
            canvas.fill(pose.points(box(-0.38, -0.15, -0.27, 0.15)), GLASS)


def draw_tree(canvas: Canvas, x: float, y: float, radius: float) -> None:
    """Draw a crown of overlapping discs, lit from the sun's side."""
    dice = canvas.dice
    leaf = dice.pick_tint([(58, 84, 48), (70, 92, 50), (48, 76, 52), (84, 96, 56)], 8)
    canvas.shadow(Pose(x, y, 0, radius).points(arc(0, 0, 1, steps=10)), 0.9 * radius)
    for i in range(3):
        dx, dy = radius * dice.between(-0.4, 0.4), radius * dice.between(-0.4, 0.4)
        canvas.disc(x + dx, y + dy, radius * dice.between(0.5, 0.8), shade(leaf, 6 * i - 14), Surface.TREE)
    canvas.disc(*canvas.towards_sun(x, y, 0.35 * radius), 0.4 * radius, shade(leaf, 18), Surface.TREE)


def draw_building(canvas: Canvas, pose: Pose, width: float) -> None:
    """Draw a roof of length 1 and `width` units: gabled, or flat with a parapet and machinery."""
    dice, half = canvas.dice, width / 2 / pose.size
    roof = dice.pick_tint([(150, 84, 66), (128, 120, 116), (176, 170, 162), (98, 104, 116), (160, 130, 104)])
    canvas.block(pose.points(centred_box(0.5, half)), dice.between(3, 6), roof, Surface.BUILT)
    # One side of a gabled roof is darker than the other.
    if dice.chance(0.5):
        canvas.fill(pose.points(box(-0.5, 0, 0.5, half)), shade(roof, -26), Surface.BUILT)
        return
    canvas.fill(pose.points(centred_box(0.46, 0.84 * half)), shade(roof, -12), Surface.BUILT)
    for _ in range(dice.integer(1, 4)):
        unit = pose.at(dice.between(-0.36, 0.36), half * dice.between(-0.6, 0.6), 0, dice.between(1.5, 3.5))
        canvas.fill(unit.points(centred_box(0.5, 0.4)), dice.tint((190, 190, 188), 20), Surface.BUILT)
