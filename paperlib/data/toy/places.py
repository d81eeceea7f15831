"""Places of the embedded data set: scenery with objects where one would look for them."""

from __future__ import annotations

from collections.abc import Callable
from math import pi

from paperlib.data.toy import shapes as draw
from paperlib.data.toy.canvas import Canvas, Colour, Pose, Surface, box
from paperlib.data.toy.scenery import (
    LAND,
    OPEN,
    Ribbon,
    buildings,
    countryside,
    ground,
    park,
    patches,
    road,
    sea,
    shore,
    somewhere,
    town,
    trees,
    water,
)


def _try(canvas: Canvas, length: float, width: float, where: tuple[Surface, ...], tries: int = 20) -> Pose | None:
    """A free pose of that length, or None after `tries` attempts; centres may lie right at the border."""
    for _ in range(tries):
        spot = somewhere(canvas, 2)
        if canvas.free(spot, length, width, where):
            return Pose(spot.x, spot.y, spot.angle, length)
    return None


def _traffic(canvas: Canvas, street: Ribbon, count: int, *more: int | None) -> None:
    """Up to `count` vehicles in their lanes, on the road and on the owners `more` (a bridge)."""
    dice = canvas.dice
    for _ in range(count):
        lane, size = dice.pick([-1, 1]), dice.between(9, 13) if dice.chance(0.7) else dice.between(14, 17)
        pose = street.at(dice.between(-80, 80), lane * street.width / 4, dice.between(-0.06, 0.06), size)
        if canvas.free(pose, size + 1, 0.5 * size, (Surface.ROAD, *more)):
            draw.vehicle(canvas, pose.at(0, 0, pi if lane > 0 else 0, size))


def _parking(canvas: Canvas) -> None:
    """A car park: marked bays in two rows, some of them taken, neighbours sometimes touching."""
    dice, bays, size = canvas.dice, canvas.dice.count(4, 8), canvas.dice.between(10, 13)
    pitch = size * dice.between(0.5, 0.62)
    spot = _try(canvas, bays * pitch + 6, 3.4 * size, OPEN)
    if spot is None:
        return
    lot, half = Pose(spot.x, spot.y, spot.angle), bays * pitch / 2
    with canvas.on(Surface.ROAD):
        canvas.fill(lot.points(box(-half - 3, -1.7 * size, half + 3, 1.7 * size)), dice.tint((126, 126, 128)))
    taken = dice.between(0.0, 0.7)
    for side in (-1, 1):
        for bay in range(bays + 1):
            u = -half + bay * pitch
            canvas.stroke(lot.points([(u, side * 0.5 * size), (u, side * 1.6 * size)]), 0.4, draw.PAINT)
            if bay < bays and dice.chance(taken):
                draw.vehicle(canvas, lot.at(u + pitch / 2, side * 1.05 * size, side * pi / 2, size))


def _tanks(canvas: Canvas) -> None:
    """A tank farm: one to eight tanks of one size on a grid, inside a bund."""
    dice, diameter = canvas.dice, canvas.dice.between(9, 22)
    columns, rows = dice.count(1, 4 if diameter < 15 else 3), dice.count(1, 2)
    pitch = diameter * dice.between(1.02, 1.4)
    length, width = columns * pitch + 4, rows * pitch + 4
    spot = _try(canvas, length, width, OPEN)
    if spot is None:
        return
    yard = Pose(spot.x, spot.y, spot.angle)
    with canvas.on(Surface.PAVED):
        canvas.fill(yard.points(box(-length / 2, -width / 2, length / 2, width / 2)), dice.tint((164, 156, 142)))
    for i in range(columns * rows):
        u, v = (i % columns - (columns - 1) / 2) * pitch, (i // columns - (rows - 1) / 2) * pitch
        if dice.chance(0.85):
            draw.storage_tank(canvas, yard.at(u, v, dice.between(0, pi), diameter))


_TENNIS: tuple[tuple[Colour, Colour], ...] = (
    ((72, 108, 76), (58, 106, 156)),
    ((76, 112, 82), (64, 98, 140)),
)
_BASKETBALL: tuple[tuple[Colour, Colour], ...] = (
    ((190, 130, 84), (150, 60, 48)),
    ((204, 160, 108), (170, 76, 60)),
)


def _courts(canvas: Canvas, court: Callable[..., None], most: int, ratio: float, palette: tuple) -> None:
    """One to `most` courts side by side, touching or a step apart."""
    dice, size, count = canvas.dice, canvas.dice.between(21, 34), canvas.dice.count(1, most)
    pitch = ratio * size * dice.pick([1.0, 1.0, 1.12])
    spot, colours = (
        _try(canvas, size + 3, count * pitch + 3, (*LAND, Surface.PAVED, Surface.TREE)),
        dice.pick(palette),
    )
    for i in range(count if spot else 0):
        court(canvas, spot.at(0, (i - (count - 1) / 2) * pitch / spot.size, 0, size), colours)


def _tennis(canvas: Canvas) -> None:
    _courts(canvas, draw.tennis_court, 4, 0.5, _TENNIS)


def _basketball(canvas: Canvas) -> None:
    _courts(canvas, draw.basketball_court, 2, 0.56, _BASKETBALL)


def _large(canvas: Canvas, shape: Callable[[Canvas, Pose], None], low: float, high: float, width: float) -> None:
    size = canvas.dice.between(low, high)
    spot = _try(canvas, size, width * size, (*OPEN, Surface.TREE), 40)
    if spot:
        shape(canvas, spot.at(0, 0, 0, size))


def _ships(canvas: Canvas, count: int, largest: float = 46) -> None:
    for _ in range(count):
        size = canvas.dice.between(13, largest)
        spot = _try(canvas, 1.1 * size, 0.4 * size, (Surface.WATER,))
        if spot:
            draw.ship(canvas, spot)


def sports(canvas: Canvas) -> None:
    """A track, a baseball diamond, courts and parked cars in a park, a town or fields."""
    dice = canvas.dice
    dice.pick([park, park, countryside, town])(canvas)
    first, second = (0.95, 0.4) if dice.chance(0.5) else (0.5, 0.9)
    if dice.chance(first):
        _large(canvas, draw.ground_track_field, 42, 80, 0.56)
    if dice.chance(second):
        _large(canvas, draw.baseball_diamond, 28, 56, 1.0)
    for chance, group in ((0.6, _tennis), (0.6, _basketball), (0.4, _parking)):
        if dice.chance(chance):
            group(canvas)
    trees(canvas, dice.count(2, 8))


def _apron(canvas: Canvas) -> Pose:
    """Grass, a runway and concrete slabs with a yellow line; returns a pose on the apron, u along it."""
    dice = canvas.dice
    ground(canvas, Surface.GRASS, dice.pick([(122, 128, 82), (104, 122, 76), (148, 138, 100)]))
    axis, edge = somewhere(canvas, 50), dice.between(18, 50)
    with canvas.on(Surface.PAVED):
        canvas.fill(axis.points(box(-220, -edge, 220, 220)), dice.tint((166, 166, 162), 22))
    for _ in range(40):
        u, v = 14 * dice.count(-9, 8), 14 * dice.count(-5, 9) - edge
        canvas.wash(axis.points(box(u, max(v, -edge), u + 14, v + 14)), (*dice.pick([(0, 0, 0), (255, 250, 240)]), 14))
    for joint in range(-182, 183, 14):
        canvas.stroke(axis.points([(joint, -edge), (joint, 220)]), 0.3, (90, 92, 94, 70))
        canvas.stroke(axis.points([(-220, joint + 182 - edge), (220, joint + 182 - edge)]), 0.3, (90, 92, 94, 70))
    with canvas.on(Surface.ROAD):
        canvas.fill(axis.points(box(-220, -edge - 44, 220, -edge - 18)), dice.tint((104, 106, 110)))
    for dash in range(-210, 210, 18):
        canvas.stroke(axis.points([(dash, -edge - 31), (dash + 10, -edge - 31)]), 0.9, draw.WHITE)
    for v in (-edge - 42, -edge - 20):
        canvas.stroke(axis.points([(-220, v), (220, v)]), 0.6, draw.PAINT)
    canvas.stroke(axis.points([(-220, -edge + 6), (220, -edge + 6)]), 0.6, (206, 172, 70))
    return axis


def airport(canvas: Canvas) -> None:
    """A row of stands along the apron, stray planes, service vehicles, a hangar."""
    dice, axis = canvas.dice, _apron(canvas)
    size, turn = dice.between(18, 44), dice.pick([0.5, 1.5]) * pi
    row, tilt = dice.between(-5, 25), dice.pick([0.0, 0.0, 0.6])
    for i in range(-4, 5):
        lead, length = axis.at(1.12 * size * i, row), size * dice.between(0.85, 1.1)
        canvas.stroke(lead.points([(0, -30), (0, 0.4 * size)]), 0.5, (206, 172, 70))
        if dice.chance(0.55):
            stand = lead.at(0, dice.between(-3, 3), turn + tilt + dice.between(-0.08, 0.08), length)
            draw.airplane(canvas, stand)
    for _ in range(dice.count(0, 2)):
        length = dice.between(18, 46)
        spot = _try(canvas, length, length, OPEN)
        if spot:
            draw.airplane(canvas, spot)
    buildings(canvas, dice.count(0, 3), axis.angle, 50)
    for _ in range(dice.count(0, 3)):
        spot = _try(canvas, dice.between(9, 15), 7, (Surface.PAVED,))
        if spot:
            draw.vehicle(canvas, spot)


def coast(canvas: Canvas) -> None:
    """A shore with piers, ships before it and sometimes tanks behind."""
    dice = canvas.dice
    waterline = shore(canvas, 15)
    v = dice.between(-80, -30)
    while v < 80 and dice.chance(0.85):
        size = dice.between(34, 62)
        pier = waterline.at(0.5 * size - 3, v, dice.between(-0.12, 0.12), size)
        if canvas.free(pier.at(0.06, 0), 0.8 * size, 0.5 * size, (Surface.WATER,)):
            draw.harbor(canvas, pier)
        v += 0.7 * size + dice.between(2, 40)
    _ships(canvas, dice.count(0, 5))
    if dice.chance(0.45):
        _tanks(canvas)


def river(canvas: Canvas) -> None:
    """A river with ships, crossed by a road on a bridge."""
    dice = canvas.dice
    dice.pick([countryside, park, town])(canvas)
    stream = Ribbon(somewhere(canvas, 40), dice.between(-0.003, 0.003), dice.between(22, 56))
    half = stream.width / 2
    water(canvas, lambda inset: stream.strip(inset - half, half - inset))
    crossing = stream.at(dice.between(-20, 20), 0, pi / 2 + dice.between(-0.3, 0.3))
    wide = dice.between(8, 14)
    _crossing(canvas, crossing, wide, 1.12 * stream.width + dice.between(4, 10))
    if stream.width > 34:
        _ships(canvas, dice.count(0, 3), 0.8 * stream.width)
    for group in (_tanks, _basketball):
        if dice.chance(0.25):
            group(canvas)
    if dice.chance(0.2):
        _large(canvas, draw.baseball_diamond, 28, 40, 1.0)


def _crossing(canvas: Canvas, axis: Pose, width: float, length: float) -> None:
    """A road along `axis`, carried by a bridge over what lies at its origin, and its traffic."""
    dice, half = canvas.dice, width / 2
    paint = dice.tint((118, 118, 118))
    with canvas.on(Surface.ROAD):
        for end in (-1, 1):
            canvas.fill(axis.points(box(end * 0.4 * length, -half, end * 260, half)), paint)
    canvas.stroke(axis.points([(-260, 0), (260, 0)]), 0.4, draw.PAINT)
    draw.bridge(canvas, axis.at(0, 0, 0, length), width + 2)
    _traffic(canvas, Ribbon(axis, 0, width), dice.count(0, 5), canvas.owner(axis.x, axis.y))


def highway(canvas: Canvas) -> None:
    """A motorway with traffic, crossed by a road on a bridge: bridges are not always over water."""
    dice = canvas.dice
    dice.pick([countryside, town])(canvas)
    motorway = road(canvas, somewhere(canvas, 45), dice.between(18, 28))
    _traffic(canvas, motorway, dice.count(1, 4))
    crossing = motorway.at(dice.between(-20, 20), 0, pi / 2 + dice.between(-0.35, 0.35))
    _crossing(canvas, crossing, dice.between(9, 13), 1.3 * motorway.width + dice.between(4, 14))
    trees(canvas, dice.count(0, 5))


def suburb(canvas: Canvas) -> None:
    """A town with traffic, car parks and courts."""
    street = town(canvas)
    _traffic(canvas, street, canvas.dice.count(1, 4))
    for chance, group in ((0.6, _parking), (0.45, _basketball), (0.45, _tennis)):
        if canvas.dice.chance(chance):
            group(canvas)


def _containers(canvas: Canvas, align: float) -> None:
    """Rows of stacked freight containers, which are no vehicles."""
    dice = canvas.dice
    spot, columns, rows = somewhere(canvas, 10), dice.count(2, 5), dice.count(1, 3)
    stack = Pose(spot.x, spot.y, align)
    if not canvas.free(stack, 9 * columns, 4 * rows, OPEN):
        return
    with canvas.on(Surface.BUILT):
        for i in range(columns * rows):
            crate = stack.at(9 * (i % columns - columns / 2), 3.6 * (i // columns - rows / 2), 0, 8.4).points(_CRATE)
            canvas.shadow(crate, 2)
            canvas.fill(crate, dice.tint(dice.pick([(166, 70, 52), (60, 96, 140), (190, 152, 72), (120, 134, 122)])))


_CRATE = box(0, 0, 1, 0.4)


def works(canvas: Canvas) -> None:
    """An industrial yard: tanks, halls, containers and traffic."""
    dice = canvas.dice
    ground(canvas, dice.pick([Surface.PAVED, Surface.SOIL]), dice.pick([(160, 154, 142), (150, 138, 118)]))
    patches(canvas, 8)
    street = road(canvas, somewhere(canvas, 30), dice.between(10, 14))
    for _ in range(dice.count(1, 3)):
        _tanks(canvas)
    buildings(canvas, dice.count(4, 10), street.pose.angle, 44)
    _containers(canvas, street.pose.angle)
    _traffic(canvas, street, dice.count(0, 3))
    trees(canvas, dice.count(0, 6))


PLACES: tuple[Callable[[Canvas], object], ...] = (
    coast, sports, airport, river, works, sports, coast, suburb, sports,
    airport, highway, sports, coast, river, sports, airport, works, sports,
    coast, river, suburb, sports, airport, works, coast, highway, river,
)  # fmt: skip
EMPTY_PLACES: tuple[Callable[[Canvas], object], ...] = (countryside, park, town, shore, sea)
