//! One vertebra: body, pedicles, laminae, articular, transverse and spinous processes.

use super::shapes::{Point, Rod, cross, dot, ellipse, normalize, smooth_max, smooth_min, subtract, superellipse};

/// What distinguishes the levels of the spine; millimetres, in an adult of average size.
pub struct Level {
    pub width: f32,
    pub depth: f32,
    pub height: f32,
    /// Height of the disc above.
    pub disc: f32,
    /// Width and depth of the spinal canal.
    pub canal: [f32; 2],
    /// From the tip of one transverse process to that of the other.
    pub span: f32,
    /// How far the transverse processes point backwards.
    pub sweep: f32,
    /// Length of the spinous process, and how far its tip lies below its root.
    pub spinous: [f32; 2],
    /// Width of a pedicle.
    pub pedicle: f32,
    /// Tilt of the vertebra's axis towards the front, degrees.
    pub pitch: f32,
}

#[rustfmt::skip]
const fn level(size: [f32; 3], disc: f32, canal: [f32; 2], span: [f32; 2], spinous: [f32; 2], pedicle: f32, pitch: f32) -> Level {
    let [width, depth, height] = size;
    Level { width, depth, height, disc, canal, span: span[0], sweep: span[1], spinous, pedicle, pitch }
}

/// L5 first, T7 last.
#[rustfmt::skip]
pub const LEVELS: [Level; 11] = [
    level([52.0, 35.0, 27.5], 11.0, [26.0, 17.0], [92.0,  6.0], [24.0,  6.0], 13.0,  20.0),
    level([50.0, 35.0, 27.5], 11.0, [24.5, 16.5], [88.0,  6.0], [29.0,  6.0], 10.5,   11.0),
    level([48.0, 34.5, 28.0], 10.5, [23.5, 16.5], [94.0,  5.0], [32.0,  6.0],  9.0,   2.0),
    level([46.0, 34.0, 27.5],  9.5, [23.0, 16.5], [86.0,  5.0], [32.0,  6.0],  8.2,  -7.0),
    level([44.0, 33.0, 26.5],  8.0, [22.5, 17.0], [74.0,  6.0], [30.0,  6.0],  7.6, -12.0),
    level([42.0, 31.5, 25.0],  6.5, [21.5, 17.0], [50.0,  9.0], [25.0,  7.0],  7.6, -13.0),
    level([39.0, 31.0, 23.5],  5.5, [19.5, 16.5], [52.0, 13.0], [23.0, 12.0],  7.4,  -10.0),
    level([36.0, 30.5, 22.5],  5.0, [17.5, 16.0], [57.0, 15.0], [24.0, 19.0],  6.6,  -6.0),
    level([34.0, 30.0, 21.5],  4.5, [17.0, 16.0], [60.0, 16.0], [25.0, 23.0],  6.2,  -1.0),
    level([33.0, 29.5, 21.0],  4.5, [17.0, 16.0], [62.0, 16.0], [26.0, 26.0],  5.8,   4.0),
    level([32.0, 29.0, 20.5],  4.5, [17.0, 16.0], [62.0, 16.0], [26.0, 28.0],  5.6,   8.0),
];

/// Where a vertebra lies, and what wear has done to it.
pub struct Placement {
    pub centre: Point,
    /// Tilt to the front, tilt to the right, and turn about the long axis; radians.
    pub pitch: f32,
    pub roll: f32,
    pub yaw: f32,
    /// Size relative to [`LEVELS`].
    pub scale: f32,
    /// Part of the height lost at the front by a compression fracture.
    pub wedge: f32,
    /// How far the end plates are dished in the middle, millimetres.
    pub dish: f32,
    /// How far osteophytes widen the rims, millimetres.
    pub lipping: f32,
}

/// A vertebra placed in the patient. Its own coordinates are u (right), v (front) and w (up) from
/// the middle of the body; it is symmetric in u.
pub struct Vertebra {
    pub centre: Point,
    axes: [Point; 3],
    /// Half width, half depth and half height of the body.
    pub half: Point,
    /// Half width and full depth of the spinal canal.
    pub canal: [f32; 2],
    /// Half the height of the discs above and below, about.
    disc: f32,
    wedge: f32,
    dish: f32,
    lipping: f32,
    rods: Vec<Rod>,
    /// The tip of the right transverse process.
    pub transverse_tip: Point,
    /// Lowest and highest corner of a box around the half with u >= 0.
    bounds: [Point; 2],
}

/// How a point lies to the nearest bone.
#[derive(Clone, Copy)]
pub struct Nearness {
    /// Signed distance, millimetres; beyond [`Vertebra::FAR`] only a lower bound.
    pub distance: f32,
    /// Thickness of the cortical shell there, millimetres.
    pub cortex: f32,
}

impl Vertebra {
    pub const FAR: f32 = 6.0;

    pub fn new(level: &Level, place: &Placement) -> Self {
        let axis = normalize([place.roll.sin(), place.pitch.sin(), place.pitch.cos()]);
        let turned = [place.yaw.cos(), place.yaw.sin(), 0.0];
        let right = normalize(subtract(turned, axis.map(|value| value * dot(turned, axis))));
        let scale = place.scale;
        let half = [level.width, level.depth, level.height].map(|value| 0.5 * scale * value);
        let canal = [0.5 * scale * level.canal[0], scale * level.canal[1]];
        let (rods, transverse_tip) = processes(level, scale);
        let back = half[1] + canal[1] + scale * (level.spinous[0] + 14.0);
        let down = half[2] + scale * (level.disc + level.spinous[1] + 14.0);
        let up = half[2] + scale * (level.disc + 12.0);
        let side = 0.5 * scale * level.span + 8.0;
        Vertebra {
            centre: place.centre,
            axes: [right, cross(axis, right), axis],
            half,
            canal,
            disc: 0.5 * scale * level.disc,
            wedge: place.wedge,
            dish: place.dish,
            lipping: place.lipping,
            rods,
            transverse_tip,
            bounds: [[0.0, -back, -down], [side, half[1] + 5.0, up]],
        }
    }

    /// `p` in the vertebra's own coordinates.
    pub fn local(&self, p: Point) -> Point {
        let offset = subtract(p, self.centre);
        self.axes.map(|axis| dot(offset, axis))
    }

    /// The vertebra's own coordinates `[u, v, w]` in the patient.
    pub fn patient(&self, [u, v, w]: Point) -> Point {
        let [right, front, up] = self.axes;
        std::array::from_fn(|i| self.centre[i] + u * right[i] + v * front[i] + w * up[i])
    }

    /// The bone's signed distance from `local`.
    pub fn nearness(&self, local: Point) -> Nearness {
        let p = [local[0].abs(), local[1], local[2]];
        let [low, high] = &self.bounds;
        let outside = (0..3).map(|i| (low[i] - p[i]).max(p[i] - high[i])).fold(f32::MIN, f32::max);
        if outside > Self::FAR {
            return Nearness { distance: outside, cortex: 1.0 };
        }
        let behind = -self.half[1] - p[1];
        let body = if behind < Self::FAR + 4.0 { self.body(p) } else { Self::FAR };
        let arch = if behind > -Self::FAR - 6.0 { self.arch(p) } else { Self::FAR };
        let cortex = if body < arch { 0.5 } else { 1.5 };
        Nearness { distance: smooth_min(body, arch, 3.0), cortex }
    }

    /// Distance from the upright wall of the body, endless upwards and downwards: a kidney bean.
    fn wall(&self, u: f32, v: f32, swell: f32) -> f32 {
        let [a, b, _] = self.half;
        let bend = 0.3 * b * (u / a) * (u / a);
        superellipse(u, v + bend, a + swell, b + swell)
    }

    fn body(&self, [u, v, w]: Point) -> f32 {
        let [a, b, h] = self.half;
        let t = (w / h).clamp(-1.0, 1.0).abs();
        let swell = -1.6 * (1.0 - t * t) + self.lipping * t.powi(6);
        let radius = (u / a) * (u / a) + (v / b) * (v / b);
        let dish = self.dish * (1.0 - radius).max(0.0);
        let loss = self.wedge * h * (0.5 * (v / b) + 0.5).clamp(0.0, 1.0);
        let plate = if w > 0.0 { w + dish + loss - h } else { -w + dish - h };
        smooth_max(self.wall(u, v, swell), plate, 2.5)
    }

    /// Everything behind the body.
    fn arch(&self, p: Point) -> f32 {
        let mut distance = f32::MAX;
        for rod in &self.rods {
            distance = smooth_min(distance.min(100.0), rod.distance(p), 2.5);
        }
        let [half_width, depth] = self.canal;
        let canal = ellipse(p[0], p[1] + self.half[1] + 0.5 * depth, half_width, 0.5 * depth);
        smooth_max(distance, -canal, 1.0)
    }

    /// Whether `local` is where a disc is, if it is no bone.
    pub fn disc(&self, [u, v, w]: Point) -> bool {
        w.abs() < self.half[2] + self.disc + 2.0 && self.wall(u.abs(), v, 0.8) < 0.0
    }
}

/// The rods of the right half of the arch, and the tip of the transverse process.
fn processes(level: &Level, scale: f32) -> (Vec<Rod>, Point) {
    let (b, h) = (0.5 * level.depth, 0.5 * level.height);
    let (c, d) = (0.5 * level.canal[0], level.canal[1]);
    let (pedicle, disc) = (0.5 * level.pedicle, level.disc);
    let [spinous, drop] = level.spinous;
    let pillar = c + pedicle;
    let root = [0.0, -b - d - 4.5, -0.45 * h];
    let tip = [0.5 * level.span - 3.0, -b - 0.7 * d - level.sweep, 0.35 * h];
    let spine_end = [0.0, root[1] - spinous, root[2] - drop];
    let middle = [0.0, root[1] - 0.6 * spinous, root[2] - 0.5 * drop];
    let bars: [(Point, Point, [f32; 2], f32); 9] = [
        // Pedicle.
        ([pillar, -b + 5.0, 0.35 * h], [pillar + 0.5, -b - 0.75 * d, 0.3 * h], [pedicle; 2], 7.4 / pedicle),
        // Transverse process.
        ([pillar, -b - 0.6 * d, 0.25 * h], tip, [4.6, 3.2], 1.4),
        // Superior articular process.
        ([pillar + 1.0, -b - 0.78 * d, 0.3 * h], [c + 6.5, -b - 0.76 * d, h + 0.6 * disc + 3.0], [4.6, 3.9], 1.0),
        // Mamillary process.
        ([pillar + 1.0, -b - 0.9 * d, 0.4 * h], [c + 7.5, -b - d, 0.75 * h], [3.6, 2.8], 1.0),
        // The bridge between the articular processes.
        ([pillar, -b - 0.85 * d, 0.2 * h], [c + 1.5, -b - 1.08 * d, -0.7 * h], [4.2, 4.0], 1.0),
        // Inferior articular process.
        ([c + 1.5, -b - 1.08 * d, -0.6 * h], [c + 1.2, -b - 1.05 * d, -h - disc - 3.0], [4.4, 4.0], 1.0),
        // Lamina.
        ([c + 1.0, -b - 0.98 * d, -0.15 * h], [1.0, -b - d - 4.5, -0.45 * h], [3.2, 3.2], 2.7),
        // Spinous process, its upper bar and its blunt lower edge.
        (root, spine_end, [2.7, 3.4], 2.3),
        (middle, [0.0, spine_end[1] + 2.0, spine_end[2] - 4.0], [2.6, 3.9], 2.0),
    ];
    let grown = |p: Point| p.map(|value| value * scale);
    let rods = bars.iter().map(|(start, end, radii, stretch)| {
        Rod::new(grown(*start), grown(*end), radii.map(|radius| radius * scale), *stretch)
    });
    (rods.collect(), grown(tip))
}
