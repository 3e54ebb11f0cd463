//! Signed distances (millimetres, negative inside) and smooth noise that the phantom is built from.

/// A point, or a direction, in millimetres.
pub type Point = [f32; 3];

pub fn subtract(a: Point, b: Point) -> Point {
    [a[0] - b[0], a[1] - b[1], a[2] - b[2]]
}

/// `a + scale * b`.
pub fn add_scaled(a: Point, b: Point, scale: f32) -> Point {
    [a[0] + scale * b[0], a[1] + scale * b[1], a[2] + scale * b[2]]
}

pub fn dot(a: Point, b: Point) -> f32 {
    a[0] * b[0] + a[1] * b[1] + a[2] * b[2]
}

pub fn cross(a: Point, b: Point) -> Point {
    [a[1] * b[2] - a[2] * b[1], a[2] * b[0] - a[0] * b[2], a[0] * b[1] - a[1] * b[0]]
}

pub fn normalize(a: Point) -> Point {
    let scale = 1.0 / dot(a, a).sqrt();
    a.map(|value| value * scale)
}

/// `from` below `low`, `to` above `high`, smooth between.
pub fn smooth_step(low: f32, high: f32, value: f32) -> f32 {
    let t = ((value - low) / (high - low)).clamp(0.0, 1.0);
    t * t * (3.0 - 2.0 * t)
}

/// The minimum of two distances, the crease between them filled over `width` millimetres.
pub fn smooth_min(a: f32, b: f32, width: f32) -> f32 {
    let overlap = (width - (a - b).abs()).max(0.0) / width;
    a.min(b) - 0.25 * width * overlap * overlap
}

/// The maximum of two distances, the edge between them rounded over `width` millimetres.
pub fn smooth_max(a: f32, b: f32, width: f32) -> f32 {
    -smooth_min(-a, -b, width)
}

/// Distance to the ellipse with half axes `a` and `b`, to first order.
pub fn ellipse(u: f32, v: f32, a: f32, b: f32) -> f32 {
    // Off the middle, where there is no gradient.
    let (p, q) = ((u / a).abs().max(1e-3), (v / b).abs().max(1e-3));
    let radius = (p * p + q * q).sqrt();
    let (p, q) = (p / a, q / b);
    radius * (radius - 1.0) / (p * p + q * q).sqrt()
}

/// The cube root of a number that is not negative, to about 1e-5 of it; faster than the exact one.
fn cube_root(value: f32) -> f32 {
    // A third of the exponent is a good first guess; two steps of Newton's method improve it.
    let mut root = f32::from_bits(value.to_bits() / 3 + 0x2a51_37a0);
    for _ in 0..2 {
        root = (2.0 * root + value / (root * root)) * (1.0 / 3.0);
    }
    root
}

/// Distance to the curve `|u/a|^3 + |v/b|^3 = 1`, fuller than an ellipse, to first order.
pub fn superellipse(u: f32, v: f32, a: f32, b: f32) -> f32 {
    let (p, q) = ((u / a).abs().max(1e-3), (v / b).abs().max(1e-3));
    let radius = cube_root(p * p * p + q * q * q);
    let (p, q) = (p * p / a, q * q / b);
    radius * radius * (radius - 1.0) / (p * p + q * q).sqrt()
}

/// A straight bar with round ends whose radius changes evenly from one end to the other,
/// stretched along z.
pub struct Rod {
    start: Point,
    along: Point,
    per_length_squared: f32,
    radius: f32,
    growth: f32,
    squash: f32,
}

impl Rod {
    /// From `start` (`radii[0]`) to `end` (`radii[1]`); in z the bar is `stretch` times as thick.
    pub fn new(start: Point, end: Point, radii: [f32; 2], stretch: f32) -> Self {
        let squash = 1.0 / stretch;
        let start = [start[0], start[1], start[2] * squash];
        let along = subtract([end[0], end[1], end[2] * squash], start);
        let per_length_squared = 1.0 / dot(along, along).max(1e-6);
        Rod { start, along, per_length_squared, radius: radii[0], growth: radii[1] - radii[0], squash }
    }

    pub fn distance(&self, p: Point) -> f32 {
        let offset = subtract([p[0], p[1], p[2] * self.squash], self.start);
        let t = (dot(offset, self.along) * self.per_length_squared).clamp(0.0, 1.0);
        let across = add_scaled(offset, self.along, -t);
        dot(across, across).sqrt() - self.radius - t * self.growth
    }
}

/// An ellipsoid turned about z.
pub struct Ellipsoid {
    pub centre: Point,
    pub radii: Point,
    turn: [f32; 2],
}

impl Ellipsoid {
    /// `angle`: radians that the first axis is turned from x towards y.
    pub fn new(centre: Point, radii: Point, angle: f32) -> Self {
        Ellipsoid { centre, radii, turn: [angle.cos(), angle.sin()] }
    }

    /// `p` in the ellipsoid's own axes, which it fills as the unit ball.
    pub fn unit(&self, p: Point) -> Point {
        let [x, y, z] = subtract(p, self.centre);
        let [cos, sin] = self.turn;
        [(cos * x + sin * y) / self.radii[0], (cos * y - sin * x) / self.radii[1], z / self.radii[2]]
    }

    /// The largest distance of a point of the ellipsoid from its centre in x and y.
    pub fn reach(&self) -> f32 {
        self.radii[0].max(self.radii[1])
    }
}

fn lattice(x: i32, y: i32, z: i32, seed: u32) -> f32 {
    let mut hash = (x as u32).wrapping_mul(0x9e37_79b1)
        ^ (y as u32).wrapping_mul(0x85eb_ca77)
        ^ (z as u32).wrapping_mul(0xc2b2_ae3d)
        ^ seed.wrapping_mul(0x27d4_eb2f);
    hash = (hash ^ (hash >> 15)).wrapping_mul(0x2c1b_3c6d);
    hash = (hash ^ (hash >> 12)).wrapping_mul(0x297a_2d39);
    ((hash ^ (hash >> 15)) >> 8) as f32 * (2.0 / 16_777_216.0) - 1.0
}

/// Smooth noise in [-1, 1] whose features are about `cell` millimetres wide: random values on a
/// lattice, interpolated.
pub fn value_noise(p: Point, cell: f32, seed: u32) -> f32 {
    let scaled = p.map(|value| value / cell);
    let corner = scaled.map(|value| value as i32 - i32::from(value < 0.0));
    let [x, y, z] = corner;
    let [s, t, r] = std::array::from_fn(|axis| {
        let f = scaled[axis] - corner[axis] as f32;
        f * f * (3.0 - 2.0 * f)
    });
    let mix = |a: f32, b: f32, t: f32| a + t * (b - a);
    let row = |y, z| mix(lattice(x, y, z, seed), lattice(x + 1, y, z, seed), s);
    let plane = |z| mix(row(y, z), row(y + 1, z), t);
    mix(plane(z), plane(z + 1), r)
}
