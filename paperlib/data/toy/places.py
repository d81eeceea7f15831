"""Places of the embedded data set: scenery with objects where one would look for them."""

from __future__ import annotations

from collections.abc import Callable
from math import pi

from paperlib.data.toy import scenery, shapes
from paperlib.data.toy.canvas import Canvas, Colour, Pose, Surface, box, centred_box
from paperlib.data.toy.scenery import LAND, OPEN, Ribbon, random_pose

YELLOW: Colour = (206, 172, 70)
"""Lines that aircraft follow on the ground."""


def _find_spot(
    canvas: Canvas, length: float, width: float, surfaces: tuple[Surface, ...], tries: int = 20
) -> Pose | None:
    """Return a free pose of that length, or None after `tries` attempts; centres may lie right at the border."""
    for _ in range(tries):
        spot = random_pose(canvas, 2)
        if canvas.is_free(spot, length, width, surfaces):
            return spot.resized(length)
    return None


def _draw_traffic(canvas: Canvas, street: Ribbon, count: int, *more: int | None) -> None:
    """Draw up to `count` vehicles in their lanes, on the road and on the owners `more` (a bridge)."""
    dice = canvas.dice
    for _ in range(count):
        lane = dice.pick([-1, 1])
        size = dice.between(9, 13) if dice.chance(0.7) else dice.between(14, 17)
        pose = street.at(dice.between(-80, 80), lane * street.width / 4, dice.between(-0.06, 0.06), size)
        if canvas.is_free(pose, size + 1, 0.5 * size, (Surface.ROAD, *more)):
            shapes.draw_vehicle(canvas, pose.at(0, 0, pi if lane > 0 else 0, size))


def _draw_car_park(canvas: Canvas) -> None:
    """Draw marked bays in two rows, some of them taken, neighbours sometimes touching."""
    dice, bays, size = canvas.dice, canvas.dice.integer(4, 8), canvas.dice.between(10, 13)
    pitch = size * dice.between(0.5, 0.62)
    spot = _find_spot(canvas, bays * pitch + 6, 3.4 * size, OPEN)
    if spot is None:
        return
    lot, half = spot.resized(1.0), bays * pitch / 2
    canvas.fill(lot.points(centred_box(half + 3, 1.7 * size)), dice.tint((126, 126, 128)), Surface.ROAD)
    # Some car parks are nearly empty, some nearly full.
    taken = dice.between(0.0, 0.7)
    for side in (-1, 1):
        for bay in range(bays + 1):
            u = -half + bay * pitch
            shapes.paint_lines(canvas, lot, 0.4, [(u, side * 0.5 * size), (u, side * 1.6 * size)])
            if bay < bays and dice.chance(taken):
                shapes.draw_vehicle(canvas, lot.at(u + pitch / 2, side * 1.05 * size, side * pi / 2, size))


def _draw_tank_farm(canvas: Canvas) -> None:
    """Draw one to eight tanks of one size on a grid, inside a bund."""
    dice, diameter = canvas.dice, canvas.dice.between(9, 22)
    columns, rows = dice.integer(1, 4 if diameter < 15 else 3), dice.integer(1, 2)
    pitch = diameter * dice.between(1.02, 1.4)
    length, width = columns * pitch + 4, rows * pitch + 4
    spot = _find_spot(canvas, length, width, OPEN)
    if spot is None:
        return
    yard = spot.resized(1.0)
    canvas.fill(yard.points(centred_box(length / 2, width / 2)), dice.tint((164, 156, 142)), Surface.PAVED)
    for i in range(columns * rows):
        u, v = (i % columns - (columns - 1) / 2) * pitch, (i // columns - (rows - 1) / 2) * pitch
        if dice.chance(0.85):
            shapes.draw_storage_tank(canvas, yard.at(u, v, dice.between(0, pi), diameter))


def _draw_courts(canvas: Canvas, draw: Callable[..., None], most: int, ratio: float, palette: tuple) -> None:
    """Draw one to `most` courts side by side, touching or a step apart."""
    dice, size, count = canvas.dice, canvas.dice.between(21, 34), canvas.dice.integer(1, most)
    # An option that is listed twice is twice as likely.
    pitch = ratio * size * dice.pick([1.0, 1.0, 1.12])
    spot = _find_spot(canvas, size + 3, count * pitch + 3, (*LAND, Surface.PAVED, Surface.TREE))
    colours = dice.pick(palette)
    if spot is None:
        return
    for i in range(count):
        draw(canvas, spot.at(0, (i - (count - 1) / 2) * pitch / spot.size, 0, size), colours)


def _draw_tennis(canvas: Canvas) -> None:
    palette = (((72, 108, 76), (58, 106, 156)), ((76, 112, 82), (64, 98, 140)))
    _draw_courts(canvas, shapes.draw_tennis_court, 4, 0.5, palette)


def _draw_basketball(canvas: Canvas) -> None:
    palette = (((190, 130, 84), (150, 60, 48)), ((204, 160, 108), (170, 76, 60)))
    _draw_courts(canvas, shapes.draw_basketball_court, 2, 0.56, palette)


def _draw_groups(canvas: Canvas, groups: dict[Callable[[Canvas], None], float]) -> None:
    """Draw each group of objects with its probability."""
    for draw, probability in groups.items():
        if canvas.dice.chance(probability):
            draw(canvas)


def _draw_field(canvas: Canvas, draw: Callable[[Canvas, Pose], None], low: float, high: float, ratio: float) -> None:
    """Draw one sports field of length `low` … `high`, where there is room for it; `ratio` is its width to length."""
    size = canvas.dice.between(low, high)
    if spot := _find_spot(canvas, size, ratio * size, (*OPEN, Surface.TREE), 40):
        draw(canvas, spot)


def _draw_ships(canvas: Canvas, count: int, largest: float = 46) -> None:
    for _ in range(count):
        size = canvas.dice.between(13, largest)
        if spot := _find_spot(canvas, 1.1 * size, 0.4 * size, (Surface.WATER,)):
            shapes.draw_ship(canvas, spot)


def draw_sports_ground(canvas: Canvas) -> None:
    """Draw a track, a baseball diamond, courts and parked cars in a park, a town or fields."""
    dice = canvas.dice
    dice.pick([scenery.draw_park, scenery.draw_park, scenery.draw_countryside, scenery.draw_town])(canvas)
    first, second = (0.95, 0.4) if dice.chance(0.5) else (0.5, 0.9)
    if dice.chance(first):
        _draw_field(canvas, shapes.draw_ground_track_field, 42, 80, 0.56)
    if dice.chance(second):
        _draw_field(canvas, shapes.draw_baseball_diamond, 28, 56, 1.0)
    _draw_groups(canvas, {_draw_tennis: 0.6, _draw_basketball: 0.6, _draw_car_park: 0.4})
    scenery.draw_trees(canvas, dice.integer(2, 8))


def _draw_apron(canvas: Canvas) -> Pose:
    """Draw grass, a runway and concrete slabs with a yellow line; return a pose on the apron, u along it."""
    dice = canvas.dice
    scenery.draw_ground(canvas, Surface.GRASS, dice.pick([(122, 128, 82), (104, 122, 76), (148, 138, 100)]))
    axis, edge = random_pose(canvas, 50), dice.between(18, 50)
    canvas.fill(axis.points(box(-220, -edge, 220, 220)), dice.tint((166, 166, 162), 22), Surface.PAVED)
    for _ in range(40):
        u, v = 14 * dice.integer(-9, 8), 14 * dice.integer(-5, 9) - edge
        canvas.wash(axis.points(box(u, max(v, -edge), u + 14, v + 14)), (*dice.pick([(0, 0, 0), (255, 250, 240)]), 14))
    for joint in range(-182, 183, 14):
        v = joint + 182 - edge
        # Joints across the apron and, at the same distances, along it.
        for line in ([(joint, -edge), (joint, 220)], [(-220, v), (220, v)]):
            canvas.stroke(axis.points(line), 0.3, (90, 92, 94, 70))
    canvas.fill(axis.points(box(-220, -edge - 44, 220, -edge - 18)), dice.tint((104, 106, 110)), Surface.ROAD)
    for dash in range(-210, 210, 18):
        canvas.stroke(axis.points([(dash, -edge - 31), (dash + 10, -edge - 31)]), 0.9, shapes.WHITE)
    shapes.paint_lines(canvas, axis, 0.6, *([(-220, v), (220, v)] for v in (-edge - 42, -edge - 20)))
    canvas.stroke(axis.points([(-220, -edge + 6), (220, -edge + 6)]), 0.6, YELLOW)
    return axis


def draw_airport(canvas: Canvas) -> None:
    """Draw a row of stands along the apron, stray planes, service vehicles, a hangar."""
    dice, axis = canvas.dice, _draw_apron(canvas)
    size, turn = dice.between(18, 44), dice.pick([0.5, 1.5]) * pi
    row, tilt = dice.between(-5, 25), dice.pick([0.0, 0.0, 0.6])
    for i in range(-4, 5):
        lead, length = axis.at(1.12 * size * i, row), size * dice.between(0.85, 1.1)
        canvas.stroke(lead.points([(0, -30), (0, 0.4 * size)]), 0.5, YELLOW)
        if dice.chance(0.55):
            stand = lead.at(0, dice.between(-3, 3), turn + tilt + dice.between(-0.08, 0.08), length)
            shapes.draw_airplane(canvas, stand)
    for _ in range(dice.integer(0, 2)):
        length = dice.between(18, 46)
        if spot := _find_spot(canvas, length, length, OPEN):
            shapes.draw_airplane(canvas, spot)
    scenery.draw_buildings(canvas, dice.integer(0, 3), axis.angle, 50)
    for _ in range(dice.integer(0, 3)):
        if spot := _find_spot(canvas, dice.between(9, 15), 7, (Surface.PAVED,)):
            shapes.draw_vehicle(canvas, spot)


def draw_coast(canvas: Canvas) -> None:
    """Draw a shore with piers, ships before it and sometimes tanks behind."""
    dice = canvas.dice
    waterline = scenery.draw_shore(canvas, 15)
    v = dice.between(-80, -30)
    while v < 80 and dice.chance(0.85):
        size = dice.between(34, 62)
        pier = waterline.at(0.5 * size - 3, v, dice.between(-0.12, 0.12), size)
        if canvas.is_free(pier.at(0.06, 0), 0.8 * size, 0.5 * size, (Surface.WATER,)):
            shapes.draw_harbor(canvas, pier)
        v += 0.7 * size + dice.between(2, 40)
    _draw_ships(canvas, dice.integer(0, 5))
    _draw_groups(canvas, {_draw_tank_farm: 0.45})


def draw_river(canvas: Canvas) -> None:
    """Draw a river with ships, crossed by a road on a bridge."""
    dice = canvas.dice
    dice.pick([scenery.draw_countryside, scenery.draw_park, scenery.draw_town])(canvas)
    stream = Ribbon(random_pose(canvas, 40), dice.between(-0.003, 0.003), dice.between(22, 56))
    half = stream.width / 2
    scenery.draw_water(canvas, lambda inset: stream.strip(inset - half, half - inset))
    crossing = stream.at(dice.between(-20, 20), 0, pi / 2 + dice.between(-0.3, 0.3))
    wide = dice.between(8, 14)
    _draw_crossing(canvas, crossing, wide, 1.12 * stream.width + dice.between(4, 10))
    # A narrow river carries no ships.
    if stream.width > 34:
        _draw_ships(canvas, dice.integer(0, 3), 0.8 * stream.width)
    _draw_groups(canvas, {_draw_tank_farm: 0.25, _draw_basketball: 0.25})
    if dice.chance(0.2):
        _draw_field(canvas, shapes.draw_baseball_diamond, 28, 40, 1.0)


def _draw_crossing(canvas: Canvas, axis: Pose, width: float, length: float) -> None:
    """Draw a road along `axis`, carried by a bridge over what lies at its origin, and its traffic."""
    dice, half = canvas.dice, width / 2
    paint = dice.tint((118, 118, 118))
    # The road ends below the bridge on either side and leaves what is crossed open.
    for end in (-1, 1):
        canvas.fill(axis.points(box(end * 0.4 * length, -half, end * 260, half)), paint, Surface.ROAD)
    shapes.paint_lines(canvas, axis, 0.4, [(-260, 0), (260, 0)])
    shapes.draw_bridge(canvas, axis.resized(length), width + 2)
    # The owner at the origin is the bridge, which was drawn just now.
    _draw_traffic(canvas, Ribbon(axis, 0, width), dice.integer(0, 5), canvas.owner_at(axis.x, axis.y))


def draw_highway(canvas: Canvas) -> None:
    """Draw a motorway with traffic, crossed by a road on a bridge: bridges are not always over water."""
    dice = canvas.dice
    dice.pick([scenery.draw_countryside, scenery.draw_town])(canvas)
    motorway = scenery.draw_road(canvas, random_pose(canvas, 45), dice.between(18, 28))
    _draw_traffic(canvas, motorway, dice.integer(1, 4))
    crossing = motorway.at(dice.between(-20, 20), 0, pi / 2 + dice.between(-0.35, 0.35))
    _draw_crossing(canvas, crossing, dice.between(9, 13), 1.3 * motorway.width + dice.between(4, 14))
    scenery.draw_trees(canvas, dice.integer(0, 5))


def draw_suburb(canvas: Canvas) -> None:
    """Draw a town with traffic, car parks and courts."""
    street = scenery.draw_town(canvas)
    _draw_traffic(canvas, street, canvas.dice.integer(1, 4))
    _draw_groups(canvas, {_draw_car_park: 0.6, _draw_basketball: 0.45, _draw_tennis: 0.45})


def _draw_containers(canvas: Canvas, align: float) -> None:
    """Draw rows of stacked freight containers, which are no vehicles."""
    dice = canvas.dice
    spot, columns, rows = random_pose(canvas, 10), dice.integer(2, 5), dice.integer(1, 3)
    stack = Pose(spot.x, spot.y, align)
    if not canvas.is_free(stack, 9 * columns, 4 * rows, OPEN):
        return
    for i in range(columns * rows):
        crate = stack.at(9 * (i % columns - columns / 2), 3.6 * (i // columns - rows / 2), 0, 8.4)
        paint = dice.pick_tint([(166, 70, 52), (60, 96, 140), (190, 152, 72), (120, 134, 122)])
        canvas.block(crate.points(box(0, 0, 1, 0.4)), 2, paint, Surface.BUILT)


def draw_works(canvas: Canvas) -> None:
    """Draw an industrial yard: tanks, halls, containers and traffic."""
    dice = canvas.dice
    surface = dice.pick([Surface.PAVED, Surface.SOIL])
    scenery.draw_ground(canvas, surface, dice.pick([(160, 154, 142), (150, 138, 118)]))
    scenery.draw_patches(canvas, 8)
    street = scenery.draw_road(canvas, random_pose(canvas, 30), dice.between(10, 14))
    for _ in range(dice.integer(1, 3)):
        _draw_tank_farm(canvas)
    scenery.draw_buildings(canvas, dice.integer(4, 10), street.pose.angle, 44)
    _draw_containers(canvas, street.pose.angle)
    _draw_traffic(canvas, street, dice.integer(0, 3))
    scenery.draw_trees(canvas, dice.integer(0, 6))


# An image's index picks its place: classes that few places have come about as often as the others.
PLACES: tuple[Callable[[Canvas], object], ...] = (
    draw_coast, draw_sports_ground, draw_airport, draw_river, draw_works, draw_sports_ground, draw_coast, draw_suburb,
    draw_sports_ground, draw_airport, draw_highway, draw_sports_ground, draw_coast, draw_river, draw_sports_ground,
    draw_airport, draw_works, draw_sports_ground, draw_coast, draw_river, draw_suburb, draw_sports_ground,
    draw_airport, draw_works, draw_coast, draw_highway, draw_river,
)  # fmt: skip
EMPTY_PLACES: tuple[Callable[[Canvas], object], ...] = (
    scenery.draw_countryside, scenery.draw_park, scenery.draw_town, scenery.draw_shore, scenery.draw_sea,
)  # fmt: skip
