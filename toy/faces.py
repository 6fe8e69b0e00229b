"""The faces of the toy world: drawn heads whose every movement is a known number.

A face is an *identity* (D uniform numbers, constant in a clip: colours, proportions, hair cut,
glasses, ...) and a *state* (15 numbers a frame: jaw, lips, brows, eyes, head). `draw` turns
(N, D) and (N, 15) into pictures (N, 3, size, size) in [-1, 1].

Each part is a signed distance function: negative inside a shape, positive outside, about the
distance to its edge. Divided by a pixel's width it tells how much of the pixel is covered, so edges
are smooth at any size. Parts are painted back to front. Coordinates: the picture spans about -.9
to .9, x to the right, y down. Nothing is much thinner than a pixel of a 64 x 64 picture.
"""

import math
from types import SimpleNamespace

import numpy as np
import torch
from torch import Tensor

STATE = ("jaw", "width", "rounding", "smile", "bite", "tongue", "brow_height", "brow_slope",
         "eye_open", "cheek", "gaze_x", "gaze_y", "head_x", "head_y", "tilt")
REST = np.array([0, .5, 0, 0, 0, 0, 0, 0, .7, 0, 0, 0, 0, 0, 0], np.float32)

TRAITS = ("skin", "undertone", "hair", "hair_shade", "cut", "volume", "fringe", "face_width",
          "face_height", "jaw_width", "eye_distance", "eye_size", "eye_colour", "brow_thickness",
          "lip_colour", "lip_fullness", "nose", "hue", "background", "clothes", "clothes_shade",
          "collar", "glasses", "frame", "beard", "freckles", "earrings", "mirror")
IDENTITY_SIZE = len(TRAITS)
SURROUNDINGS = ("hue", "background", "clothes", "clothes_shade", "collar")  # no part of the head

ZOOM = 1.1            # how much closer the view is than the coordinates -1..1

# Colours as RGB in 0..1
SKIN = [(.99, .87, .79), (.96, .79, .66), (.88, .67, .50), (.73, .51, .35), (.55, .36, .24),
        (.37, .23, .16)]
HAIR = [(.10, .09, .10), (.20, .12, .08), (.33, .19, .10), (.48, .29, .14), (.66, .45, .22),
        (.91, .76, .42), (.72, .30, .10), (.62, .61, .62), (.90, .89, .86), (.92, .45, .62),
        (.20, .55, .62), (.48, .32, .70)]
IRIS = [(.30, .17, .08), (.45, .28, .10), (.25, .48, .24), (.18, .45, .72), (.36, .50, .58)]
LIPS = [(.78, .22, .24), (.80, .30, .30), (.66, .12, .28), (.85, .28, .40), (.62, .20, .16)]
CLOTHES = [(.85, .25, .22), (.16, .28, .52), (.95, .75, .25), (.20, .52, .42), (.93, .92, .90),
           (.20, .20, .24), (.58, .36, .62), (.93, .52, .28), (.35, .60, .80)]
FRAMES = [(.10, .10, .12), (.50, .12, .16), (.12, .22, .46), (.10, .28, .20)]
EARRINGS = [(.96, .80, .30), (.93, .93, .95), (.85, .25, .35), (.20, .65, .65)]
LUMA = torch.tensor([.30, .59, .11])

# Hair cuts: opacity, volume at the sides and on top, hairline height and how much it runs down to
# one side (sweep), from a middle parting (part) and at the temples (temple); half-width and lower
# end of the hair behind the head; curl; a bun's x, y and radius, and whether it has a twin.
CUT = ("opacity", "at_side", "on_top", "line", "sweep", "part", "temple", "back", "end", "curl",
       "bun_x", "bun_y", "bun_r", "twin")
CUTS = torch.tensor([
    #  opac  side  top  line  sweep part temple  back  end  curl  bunx  buny  bunr twin
    [0.00, .00, .00, -.60, .00, .00, .60, .00, -.3, .00, 0.00, 0.00, .00, 0],   # bald
    [0.60, .01, .02, -.54, .00, .00, .90, .00, -.3, .00, 0.00, 0.00, .00, 0],   # buzz
    [1.00, .05, .10, -.54, .10, .00, .80, .00, -.3, .00, 0.00, 0.00, .00, 0],   # short
    [1.00, .06, .12, -.52, .45, .00, .50, .00, 0.1, .00, 0.00, 0.00, .00, 0],   # swept fringe
    [1.00, .10, .13, -.50, .00, .00, .15, .80, 0.50, .00, 0.00, 0.00, .00, 0],  # bob with a fringe
    [1.00, .09, .12, -.70, .00, .75, .25, .78, 1.40, .00, 0.00, 0.00, .00, 0],  # long, parted
    [1.00, .10, .13, -.52, .55, .00, .45, .84, 1.40, .05, 0.00, 0.00, .00, 0],  # long, wavy, swept
    [1.00, .20, .22, -.52, .00, .00, .50, .92, 0.25, .05, 0.00, 0.00, .00, 0],  # afro
    [1.00, .08, .16, -.50, .15, .00, .70, .00, -.1, .05, 0.00, 0.00, .00, 0],   # short curls
    [1.00, .03, .04, -.58, .00, .10, .60, .00, -.3, .00, 0.00, -.72, .27, 0],   # bun on top
    [1.00, .04, .07, -.52, .40, .00, .50, .00, -.3, .00, 0.66, 0.14, .21, 0],   # side tail
    [1.00, .05, .07, -.66, .00, .55, .30, .00, -.3, .00, 0.62, -.68, .25, 1],   # two buns
    [1.00, .07, .10, -.60, .00, .30, .40, .76, 0.62, .04, 0.00, 0.00, .00, 0],  # wavy to the chin
])


def random_identity(rng: np.random.Generator) -> np.ndarray:
    """A new face (D,) float32, uniform in [0, 1]."""
    return rng.random(IDENTITY_SIZE, dtype=np.float32)


def elsewhere(identity: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """The same heads (N, D), each before another background and in other clothes."""
    found, places = identity.clone(), [TRAITS.index(name) for name in SURROUNDINGS]
    found[:, places] = torch.rand(len(found), len(places), generator=generator)
    return found


# Shapes: signed distances; x, y (N, H, W), everything else broadcasts to it.

def ellipse(x: Tensor, y: Tensor, rx, ry) -> Tensor:
    u, v = (x / rx).square() + 1e-8, (y / ry).square() + 1e-8
    k = (u + v).sqrt()
    return k * (k - 1) / (u / rx ** 2 + v / ry ** 2).sqrt()


def egg(x: Tensor, y: Tensor, rx, up, down) -> Tensor:
    """Ellipse with another height above its middle than below."""
    return ellipse(x, y, rx, torch.where(y < 0, up, down))


def bar(x: Tensor, y: Tensor, length, radius) -> Tensor:
    """Horizontal bar with round ends, half-length `length` + `radius`."""
    return torch.hypot((x.abs() - length).clamp_(min=0), y) - radius


def box(x: Tensor, y: Tensor, rx, ry, corner) -> Tensor:
    dx, dy = x.abs() - (rx - corner), y.abs() - (ry - corner)
    outside = torch.hypot(dx.clamp(min=0), dy.clamp(min=0))
    return outside + torch.maximum(dx, dy).clamp_(max=0) - corner


def join(a: Tensor, b: Tensor, k: float) -> Tensor:
    """Smooth union: the crease between two shapes is filled over a distance k."""
    h = (k - (a - b).abs()).clamp_(min=0)
    return torch.minimum(a, b) - h * h / (4 * k)


def both(*shapes: Tensor) -> Tensor:
    """Intersection."""
    out = shapes[0]
    for shape in shapes[1:]:
        out = torch.maximum(out, shape)
    return out


class Canvas:
    """A picture (N, 3, H, W) in 0..1 and the coordinates of its pixels (1, H, W)."""

    def __init__(self, n: int, size: int):
        line = ((torch.arange(size) + .5) * 2 / size - 1) / ZOOM
        self.x = line[None, None].expand(1, size, size)
        self.y = line[None, :, None].expand(1, size, size) + .04
        self.pixel = 2 / size / ZOOM
        self.image = torch.empty(n, 3, size, size)

    def paint(self, colour: Tensor, shape: Tensor, alpha=1., soft: float = 0.) -> None:
        """Paint colour (N, 3) on the inside of shape; `soft` widens the edge (in picture units)."""
        cover = (.5 - shape / (1.5 * self.pixel + soft)).clamp_(0, 1) * alpha
        colour, cover = colour[..., None, None], cover[:, None]
        self.image.lerp_(colour.expand_as(self.image), cover.expand_as(self.image))


def pick(palette: list | Tensor, u: Tensor) -> Tensor:
    """One of the colours (or other rows) (N, 3), by u (N,) in [0, 1]."""
    return torch.as_tensor(palette)[(u * len(palette)).long().clamp(max=len(palette) - 1)]


def ramp(palette: list, u: Tensor) -> Tensor:
    """A colour (N, 3) between neighbours of the list."""
    at = u * (len(palette) - 1)
    low = at.long().clamp(max=len(palette) - 2)
    table = torch.tensor(palette)
    return torch.lerp(table[low], table[low + 1], (at - low)[:, None])


def mix(a: Tensor, b, share) -> Tensor:
    return torch.lerp(a, torch.as_tensor(b).expand_as(a), torch.as_tensor(share).expand_as(a))


def contrast(colour: Tensor, other: Tensor) -> Tensor:
    """The colour (N, 3), made darker or lighter where it would vanish in the other."""
    gap = (colour - other) @ LUMA
    close = (1 - gap.abs() / .25).clamp(min=0)
    return colour * torch.where(gap < .06, 1 - .65 * close, 1 + .4 * close)[:, None]


def draw(identity: Tensor, state: Tensor, size: int, right_eye: Tensor | None = None) -> Tensor:
    """Pictures (N, 3, size, size) in [-1, 1] of identity (N, D) or (D,) in the states (N, S).

    jaw 0 closed .. 1 wide; width 0 narrow, .5 rest, 1 spread; rounding 0 .. 1 pursed; smile -1
    corners down .. 1 up; bite 0 .. 1 lower lip at the upper teeth; tongue 0 .. 1 tip visible;
    brow_height -1 .. 1; brow_slope -1 angry (inner ends down) .. 1 sad (inner ends up); eye_open
    0 shut, .7 rest, 1.2 wide; cheek 0 .. 1 raised; gaze and head -1 .. 1 (x: 1 is right, y: 1 is
    down in the picture; 1 moves the head by .06); tilt -1 .. 1 (clockwise, 6 degrees). In this
    world both eyes are equally open; only for the judges the one at the right of the picture may be
    open otherwise, as `right_eye` (N,) says.
    """
    identity = identity.expand(len(state), -1)
    eyes = state[:, STATE.index("eye_open")] if right_eye is None else right_eye
    chunk = max(1, 32 * 64 * 64 // size ** 2)             # small enough to stay in the cache
    return torch.cat([Portrait(*part, size).painted() for part in zip(
        identity.split(chunk), state.split(chunk), eyes.split(chunk))])


def in_picture(fx: Tensor, fy: Tensor, state: Tensor) -> Tensor:
    """Where points of the features' coordinates, fx and fy (..., H, W), come to lie in pictures of
    states (N, S), with x and y from -1 to 1 from edge to edge: (N, ..., H, W, 2). What `Portrait`
    does to its pixels, the other way round."""
    s = dict(zip(STATE, state.T.reshape(-1, len(state), *[1] * fx.dim())))
    angle = s["tilt"] * .105
    hx, hy = fx + .025 * s["head_x"], fy + .02 * s["head_y"] - .7
    x = hx * angle.cos() - hy * angle.sin() + .06 * s["head_x"]
    y = hx * angle.sin() + hy * angle.cos() + .06 * s["head_y"] + .7
    return torch.stack([x, y - .04], -1) * ZOOM


def skull(t: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Half the width of a head, and its upper end."""
    return .56 + .09 * t["face_width"], -.70 - .06 * t["face_height"]


def head_shape(x: Tensor, y: Tensor, t: dict[str, Tensor], s: dict[str, Tensor]) -> Tensor:
    """Skull and jaw at points of the head's coordinates."""
    wide, crown = skull(t)
    chin = .70 + .08 * t["face_height"] + (.17 * s["jaw"] - .03 * s["bite"])
    upper = ellipse(x, y - (crown + .42) / 2, wide, (.42 - crown) / 2)
    lower = ellipse(x, y - (chin - .44), wide * (.78 + .15 * t["jaw_width"]), .44)
    return join(upper, lower, .16)


def mouth_shape(t: dict[str, Tensor], s: dict[str, Tensor]) -> SimpleNamespace:
    """The measures of a mouth: the half-widths of the lips and of the hole between them, how far
    hole and lips reach above and below the line where the lips meet, and how that line is bent."""
    half = .235 + .15 * s["width"] - .16 * s["rounding"] + .02 * s["smile"].clamp(min=0)
    half = half.clamp(min=.13)
    bend = (s["smile"] + .2) * (.55 + .45 * half / .3)
    above = .014 + .035 * s["jaw"] + .02 * s["bite"]
    below = (.014 + .21 * s["jaw"] * (1 - .8 * s["bite"]) + .045 * s["bite"]
             + .06 * s["tongue"] * (1 - s["jaw"]))
    full, pout = .055 + .025 * t["lip_fullness"], .03 * s["rounding"]
    upper, lower = above + full + pout, below + (full * 1.2 + pout) * (1 - .65 * s["bite"])
    return SimpleNamespace(half=half, inner=half - .045 - .6 * pout, bend=bend, above=above,
                           below=below, upper=upper, lower=lower)


def eye_shape(t: dict[str, Tensor], s: dict[str, Tensor], open_: Tensor) -> tuple[Tensor, ...]:
    """The measures of eyes that are so open: half their width, how far they reach up and down from
    the corners, and how far the middle of shut lids is above the corners."""
    size = .115 + .03 * t["eye_size"]
    up = .012 + size * .90 * open_
    down = .012 + size * .75 * open_.clamp(max=1) * (1 - .6 * s["cheek"])
    shut = .04 * (1 - open_).clamp(min=0) ** 2         # shut lids curve, up over raised cheeks
    return size, up, down, shut * (2 * s["cheek"] - 1)


def landmarks(identity: Tensor, state: Tensor, size: int) -> Tensor:
    """The usual 68 points of the faces that `draw` makes of the same: (N, 68, 2), x and y in
    pixels, whole numbers at their centres. In the order of iBUG: jaw from left to right, brows,
    bridge of the nose, its lower end, eyes, outer and inner lips; left is the picture's left."""
    def column(*values: float) -> Tensor:
        return torch.tensor(values).expand(len(state), -1)

    def ring(n: int, half: Tensor, up: Tensor, down: Tensor) -> tuple[Tensor, Tensor]:
        """Points around an egg, clockwise from its left end: n on its upper half, ends included."""
        u = torch.linspace(-1, 1, n).expand(len(state), n)
        u = torch.cat([u, u.flip(1)[:, 1:-1]], 1)
        reach = torch.where(torch.arange(2 * n - 2) < n, -up, down)
        return half * u, reach * (1 - u.square()).sqrt()

    t = dict(zip(TRAITS, identity.expand(len(state), -1).float().unbind(1)))
    s = dict(zip(STATE, state.float().unbind(1)))
    t, s = ({name: u[:, None] for name, u in each.items()} for each in (t, s))      # (N, 1)
    apart = .25 + .05 * t["eye_distance"]

    # The jaw: on 17 rays from the middle of the head, where its edge is, by halving.
    angle = torch.linspace(0, math.pi, 17)
    near, far = column(*[0.] * 17), column(*[2.] * 17)
    for _ in range(20):
        r = (near + far) / 2
        inside = head_shape(-r * angle.cos(), r * angle.sin(), t, s) < 0
        near, far = torch.where(inside, r, near), torch.where(inside, far, r)
    jaw = (-r * angle.cos() - .025 * s["head_x"], r * angle.sin() - .02 * s["head_y"])

    out = column(.15, .075, 0, -.075, -.15)                                 # towards the temple
    brow = -.345 - .075 * s["brow_height"] - s["brow_slope"] * (.03 - .42 * out)
    brow = brow + 1.1 * out.square()
    below = column(-.8, -.4, 0, .4, .8)
    nose = (torch.cat([column(0, 0, 0, 0), (.07 + .04 * t["nose"]) * below], 1),
            torch.cat([column(-.10, -.03, .04, .105),
                       .135 + (.055 + .015 * t["nose"]) * (1 - below.square()).sqrt()], 1))

    width, up, down, bulge = eye_shape(t, s, s["eye_open"])
    ex, ey = ring(4, width, up, down)
    ey = ey - .10 - bulge * (1 - (ex / width).square())

    mouth, m = [], mouth_shape(t, s)
    outer, inner = (7, m.half, m.upper, m.lower), (5, m.inner, m.above, m.below)
    for shape, bow in ((outer, .018), (inner, 0)):
        mx, my = ring(*shape)
        my = my + bow * (1 - mx.abs() / .07).clamp(min=0) * (my < 0)
        slope = (.32 * m.bend * mx / m.half ** 2).clamp(-1.5, 1.5)
        bent = m.bend * (.16 * (mx / m.half).square().clamp(max=1.5) - .045)
        mouth.append((mx, my * (1 + slope.square()).sqrt() - bent + .40 - .02 * s["rounding"]))

    parts = [jaw, (-apart - out, brow), (apart - out, brow.flip(1)), nose, (ex - apart, ey),
             (ex + apart, ey), *mouth]
    fx, fy = (torch.cat(each, 1) for each in zip(*parts))                           # (N, 68)
    places = torch.cat([in_picture(*point, one[None]) for *point, one in zip(fx, fy, state)])
    return (places + 1) * size / 2 - .5


def colours(u: dict[str, Tensor]) -> SimpleNamespace:
    """The colours (N, 3) that an identity's traits (N,) ask for."""
    undertone = (u["undertone"] - .5)[:, None] * torch.tensor([.02, -.03, -.07])
    skin = ramp(SKIN, u["skin"]) + undertone
    shade, glow = skin * torch.tensor([.84, .78, .76]), mix(skin, (1., .93, .85), .22)
    hair = pick(HAIR, u["hair"] ** 1.7) * (.85 + .3 * u["hair_shade"])[:, None]
    hair = contrast(hair, skin)
    brow = contrast(mix(hair, shade * .35, .55), skin)
    lip = mix(skin, pick(LIPS, u["lip_colour"]), .78) * (1.02 - .18 * skin @ LUMA)[:, None]
    whiskers = contrast(mix(hair, skin, .2), lip)           # the lips stay visible in a beard
    dark = torch.tensor([[.17, .05, .06]]).expand_as(skin)
    tongue = torch.tensor([[.86, .40, .42]]).expand_as(skin)
    white = torch.tensor([[.98, .98, .96]]).expand_as(skin)
    lash = mix(dark, brow, .25) * .7
    iris = ramp(IRIS, u["eye_colour"] * (1 - .5 * u["skin"]))
    clothes = pick(CLOTHES, u["clothes"]) * (.8 + .25 * u["clothes_shade"])[:, None]
    earring, frame = pick(EARRINGS, u["freckles"]), pick(FRAMES, u["frame"] * 2 % 1)
    phase = u["hue"][:, None] + torch.tensor([0., 1 / 3, 2 / 3])
    bright = u["background"][:, None]
    background = .48 + .36 * bright + (.20 - .07 * bright) * torch.cos(2 * math.pi * phase)
    return SimpleNamespace(
        skin=skin, shade=shade, glow=glow, hair=hair, brow=brow, lip=lip, whiskers=whiskers,
        dark=dark, tongue=tongue, white=white, lash=lash, iris=iris, clothes=clothes,
        earring=earring, frame=frame, background=background)


class Portrait(Canvas):
    """A picture of faces in the making: what several parts of a face need to know, and each part.

    Traits `t` and state `s` are (N, 1, 1) each, colours `c` (N, 3). There are three sets of
    coordinates (N, H, W): the picture's x, y; the head's hx, hy, moved and turned about the neck;
    and the features' fx, fy, which move a little more than the skull does (parallax).
    """

    def __init__(self, identity: Tensor, state: Tensor, right_eye: Tensor, size: int):
        super().__init__(len(state), size)
        flat = dict(zip(TRAITS, identity.float().unbind(1)))        # each (N,), for colours
        self.c = colours(flat)
        self.t = t = {name: u[:, None, None] for name, u in flat.items()}
        self.s = s = {name: u[:, None, None] for name, u in zip(STATE, state.float().unbind(1))}

        angle = s["tilt"] * .105
        dx, dy = self.x - .06 * s["head_x"], self.y - .06 * s["head_y"] - .7
        self.hx = dx * angle.cos() + dy * angle.sin()
        self.hy = dy * angle.cos() - dx * angle.sin() + .7
        self.fx, self.fy = self.hx - .025 * s["head_x"], self.hy - .02 * s["head_y"]

        # Proportions that more than one part goes by
        self.wide, self.crown = skull(t)
        cut = pick(CUTS, flat["cut"])[:, :, None, None]            # (N, 14, 1, 1)
        self.cut = SimpleNamespace(**dict(zip(CUT, cut.unbind(1))))
        self.volume = .8 + .5 * t["volume"]
        self.turn = torch.where(t["mirror"] < .5, -1., 1.)         # the side the hair is swept to
        self.bearded = ((t["beard"] > .84) & (t["hair"] < .8)).float()      # at least a moustache
        self.full_beard = self.bearded * (t["beard"] > .90)
        self.apart = .25 + .05 * t["eye_distance"]                 # of each eye from the middle
        self.ex = self.fx - self.fx.sign() * self.apart            # both eyes at once, from there
        self.open = torch.where(self.fx < 0, s["eye_open"], right_eye.float()[:, None, None])

    def painted(self) -> Tensor:
        """The finished picture (N, 3, H, W) in [-1, 1]: every part, from back to front."""
        self.background()
        self.hair_behind()
        self.neck_and_clothes()
        self.ears()
        self.head()
        self.nose()
        self.mouth()
        self.eyes()
        self.hair_in_front()
        self.brows()
        self.glasses()
        return self.image.clamp_(0, 1).mul_(2).sub_(1)

    def background(self) -> None:
        """Lighter above."""
        self.image.copy_(self.c.background[..., None, None] * (1.04 - .10 * self.y)[:, None])

    def hair_behind(self) -> None:
        """What falls behind the head, and buns."""
        hx, hy, cut = self.hx, self.hy, self.cut
        waves = cut.curl * torch.cos(11 * torch.atan2(hx, -hy - .1)) * .8
        width = cut.back * (.94 + .1 * self.t["volume"])
        behind = box(hx, hy - (cut.end - .75) / 2, width, (cut.end + .94) / 2, .66) - waves
        bun_side = torch.where(cut.twin > 0, hx.abs(), hx * self.turn)
        bun = ellipse(bun_side - cut.bun_x, hy - cut.bun_y, cut.bun_r + .01,
                      cut.bun_r * self.volume + .01)
        self.paint(self.c.hair * .80, behind, (cut.back > 0).float())
        self.paint(self.c.hair * .88, bun, (cut.bun_r > 0).float())

    def neck_and_clothes(self) -> None:
        x, y, c, t = self.x, self.y, self.c, self.t
        neck = .22 + .08 * t["face_width"]
        self.paint(c.shade * .93, box(x, y - .9, neck, .5, .05))
        body = join(ellipse(x, y - 1.38, .98, .50), ellipse(x, y - 1.2, neck + .16, .36), .1)
        self.paint(c.clothes, body)
        round_neck = ellipse(x, y - .80, neck + .06, .16)
        v_neck = .8 * x.abs() + .6 * (y - 1.04)
        opening = torch.where(t["collar"] < .5, round_neck, v_neck)
        opening = torch.where(t["collar"] < .8, opening, round_neck + .06)
        collar = both(opening - .06, body)
        self.paint(mix(c.clothes, c.white, .45) * .9, collar, (t["collar"] > .25).float())
        self.paint(c.shade * .93, both(opening, body - .03, box(x, y - .9, neck + .01, .5, .05)))

    def ears(self) -> None:
        x, y, c, t = self.hx.abs() - self.wide + .005, self.hy, self.c, self.t
        self.paint(mix(c.skin, c.shade, .35), ellipse(x, y, .10, .15))
        self.paint(c.shade * .92, ellipse(x - .015, y, .05, .09), soft=.03)
        ring = torch.where(t["frame"] < .5, ellipse(x - .03, y - .19, .045, .045),
                           (ellipse(x - .03, y - .23, .06, .075).abs() - .02))
        self.paint(c.earring, ring, (t["earrings"] > .72).float())

    def head(self) -> None:
        """Skull and jaw, with blush, freckles and beard."""
        fx, fy, c, t, s = self.fx, self.fy, self.c, self.t, self.s
        face = head_shape(self.hx, self.hy, t, s)
        self.paint(c.skin, face)
        flush = mix(c.skin, (.92, .35, .35), .32)
        blush = ellipse(fx.abs() - .33, fy - .20 + .03 * s["cheek"], .15, .10)
        self.paint(flush, blush, .35 + .65 * s["cheek"], soft=.10)
        freckled = (t["freckles"] > .82).float()
        for at_x, at_y in ((.25, .15), (.35, .11), (.33, .22)):
            dot = ellipse(fx.abs() - at_x, fy - at_y, .024, .024)
            self.paint(mix(c.skin, c.shade * .8, .45), dot, freckled)
        cheeks = ellipse(fx, fy + .06, self.wide * .86, .40)
        self.paint(c.whiskers, both(face - .01, -cheeks, -fy - .02), self.full_beard)

    def nose(self) -> None:
        fx, fy, c = self.fx, self.fy, self.c
        width, height = .07 + .04 * self.t["nose"], .055 + .015 * self.t["nose"]
        self.paint(mix(c.skin, c.shade, .75), ellipse(fx, fy - .135, width, height), soft=.01)
        self.paint(c.glow, ellipse(fx, fy - .105, width - .013, height), soft=.02)

    def mouth(self) -> None:
        """The smile bends its coordinates, so that every shape is upright in them: 0 is where the
        lips meet."""
        c, s, paint, m = self.c, self.s, self.paint, mouth_shape(self.t, self.s)
        half, above, below, upper, lower = m.half, m.above, m.below, m.upper, m.lower
        mx, my = self.fx, self.fy - .40 + .02 * s["rounding"]
        my = my + m.bend * (.16 * (mx / half).square().clamp(max=1.5) - .045)
        slope = (.32 * m.bend * mx / half ** 2).clamp(-1.5, 1.5)
        my = my / (1 + slope.square()).sqrt()             # distance across the lips, not down

        # Moustache, the shade under the lip, lips
        paint(c.whiskers, bar(mx, my + upper + .035 - .25 * mx.square(), .20, .045), self.bearded)
        paint(c.shade, ellipse(mx, my - lower - .045, half * .5, .03), .8 - .8 * self.full_beard,
              soft=.04)
        bow = .018 * (1 - mx.abs() / .07).clamp(min=0)     # the dip in the middle of the upper lip
        paint(c.lip, egg(mx, my - bow * (my < 0), half, upper, lower))
        gloss = ellipse(mx, my - (below + lower) / 2, half * .42, .014)
        paint(mix(c.lip, c.white, .28), gloss, 1 - s["bite"], soft=.03)

        # Inside: teeth, tongue
        hole = egg(mx, my, m.inner, above, below)
        paint(c.dark, hole)
        opened = ((above + below - .04) / .05).clamp(0, 1)
        teeth = .05 + .02 * s["smile"].clamp(min=0) + .03 * s["bite"] - .015 * s["tongue"]
        bared = opened * (1 - 1.25 * s["rounding"]).clamp(min=0)
        paint(c.white, both(hole + .008, my + above - .01 - teeth), bared)
        tip = ellipse(mx, my - below * (1.1 - .65 * s["tongue"]), m.inner * .66, .02 + below * .48)
        paint(c.tongue, both(hole + .012, tip), opened * (s["tongue"] + s["jaw"]).clamp(max=1))

    def eyes(self) -> None:
        ex, c, s = self.ex, self.c, self.s
        size, up, down, bulge = eye_shape(self.t, s, self.open)
        ey = self.fy + .10 + bulge * (1 - (ex / size).square())
        lids = egg(ex, ey + .01, size + .03, size * 1.05, size * .8)
        self.paint(mix(c.skin, c.shade, .55), lids, soft=.02)
        self.paint(c.lash, egg(ex, ey, size + .022, up + .035, down))
        ball = egg(ex, ey, size, up, down)
        seen = (self.open * 5).clamp(0, 1)
        self.paint(c.white, ball, seen)
        ix, iy = ex - .058 * s["gaze_x"], ey + .015 - .045 * s["gaze_y"]
        self.paint(c.iris, both(ball, ellipse(ix, iy, .086, .086)), seen)
        self.paint(c.dark * .5, both(ball, ellipse(ix, iy, .048, .048)), seen)
        self.paint(c.white, both(ball, ellipse(ix - .03, iy + .03, .024, .024)), seen)

    def hair_in_front(self) -> None:
        """A cap over the skull, above the hairline."""
        hx, hy, c, cut = self.hx, self.hy, self.c, self.cut
        curls = cut.curl * .5 * torch.cos(13 * torch.atan2(hx, -hy - .1))
        cap = ellipse(hx, hy - (self.crown + .30) / 2, self.wide + cut.at_side * self.volume,
                      (.30 - self.crown) / 2 + cut.on_top * self.volume) - curls
        u = hx / self.wide
        hairline = cut.line - .04 * self.t["fringe"] + .3 * self.turn * cut.sweep * u
        hairline = hairline + .5 * cut.part * u.abs()
        hairline = hairline + cut.temple * u ** 4
        front = both(cap, (hy - hairline) * .8, hy - .30)
        hair = mix(c.skin, c.hair, cut.opacity[..., 0])
        self.paint(hair, front, (cut.opacity > 0).float())
        shine = both(front + .03, ellipse(hx - .18 * self.turn, hy - self.crown - .06, .24, .05))
        self.paint(mix(hair, c.white, .16), shine, (cut.opacity == 1).float(), soft=.05)

    def brows(self) -> None:
        s = self.s
        thick = .026 + .02 * self.t["brow_thickness"]
        out = self.fx.abs() - self.apart                                    # towards the temple
        lift = self.fy + .345 + .075 * s["brow_height"] + s["brow_slope"] * (.03 - .42 * out)
        lift = lift - 1.1 * out.square()                                    # arched
        self.paint(self.c.brow, bar(out, lift, .13, thick * (1 - out).clamp(.6, 1.2)))

    def glasses(self) -> None:
        ex, fy = self.ex, self.fy
        lens = torch.where(self.t["frame"] < .5, ellipse(ex, fy + .08, .205, .195),
                           box(ex, fy + .08, .21, .165, .07))
        bridge = both(bar(self.fx, fy + .10, self.wide, .018), -lens)
        worn = (self.t["glasses"] > .8).float()
        self.paint(self.c.frame, torch.minimum(lens.abs() - .018, bridge), worn)
