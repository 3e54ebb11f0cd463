//! What is where in an axial slice of a patient.

use super::anatomy::Patient;
use super::organs::Organ;
use super::shapes::{Point, Rod, ellipse, smooth_step, superellipse, value_noise};
use super::vertebra::{Nearness, Vertebra};

const AIR: f32 = -1000.0;
const FAT: f32 = -105.0;
/// Bones keep this distance in joints, millimetres.
const JOINT: f32 = 1.6;

/// A vessel cut across.
struct Vessel {
    middle: [f32; 2],
    radii: [f32; 2],
    value: f32,
    plaque: f32,
}

/// Noise at a voxel, in [-1, 1].
pub struct Texture {
    pub fine: f32,
    pub coarse: f32,
    /// How far soft tissue is pushed out of shape, millimetres.
    warp: [f32; 2],
}

/// What of a patient matters near one height.
pub struct Section<'a> {
    patient: &'a Patient,
    /// Height in levels above L5, the middle of the spine there, and the shift of the torso.
    level: f32,
    spine: Point,
    shift: f32,
    vertebrae: Vec<&'a Vertebra>,
    organs: Vec<&'a Organ>,
    vessels: Vec<Vessel>,
    /// Necks of the ribs, for the right half and for the left.
    necks: [Vec<Rod>; 2],
}

/// Hounsfield units, and whether they are a vertebra's.
pub type Sample = (f32, bool);

impl<'a> Section<'a> {
    pub fn new(patient: &'a Patient, z: f32, thickness: f32) -> Self {
        let level = patient.level(z);
        let spine = patient.spine_at(level);
        let near = |middle: f32, reach: f32| (z - middle).abs() < reach + 0.5 * thickness + 6.0;
        let mut section = Section {
            patient,
            level,
            spine,
            shift: patient.torso_shift(spine),
            vertebrae: patient.vertebrae.iter().filter(|v| near(v.centre[2], 62.0)).collect(),
            organs: patient.organs.iter().rev().filter(|o| near(o.shape.centre[2], o.shape.radii[2])).collect(),
            vessels: Vec::new(),
            necks: [Vec::new(), Vec::new()],
        };
        section.vessels = section.vessels();
        for index in 5..patient.vertebrae.len() {
            if near(patient.vertebrae[index].centre[2], 40.0) {
                section.add_necks(index);
            }
        }
        section
    }

    /// Noise for a voxel at `p`.
    pub fn texture(&self, p: Point) -> Texture {
        let seed = self.patient.texture;
        let noise = |cell, number: u32| value_noise(p, cell, seed.wrapping_add(number));
        Texture { fine: noise(3.5, 0), coarse: noise(11.0, 1), warp: [4.0 * noise(38.0, 2), 4.0 * noise(38.0, 3)] }
    }

    /// How far `p` is from the nearest bone, at least; negative inside.
    pub fn bone_distance(&self, p: Point) -> f32 {
        let depth = self.depth(p[0], p[1] - self.shift);
        self.vertebra(p).distance.min(self.rib(p, depth)).min(self.ilium(p))
    }

    /// What is at `p`.
    pub fn sample(&self, p: Point, texture: &Texture) -> Sample {
        let bone = self.vertebra(p);
        if bone.distance < 0.0 {
            return (self.bone(bone, texture, self.beside(p)), true);
        }
        let depth = self.depth(p[0], p[1] - self.shift);
        let other = self.rib(p, depth).min(self.ilium(p));
        if other < 0.0 {
            return (self.bone(Nearness { distance: other, cortex: 1.3 }, texture, None), false);
        }
        (self.at_depth(p, depth, texture), false)
    }

    /// What is at `p`, in Hounsfield units, if it is no bone.
    pub fn sample_soft(&self, p: Point, texture: &Texture) -> f32 {
        self.at_depth(p, self.depth(p[0], p[1] - self.shift), texture)
    }

    fn at_depth(&self, p: Point, depth: f32, texture: &Texture) -> f32 {
        if depth < 0.0 { self.table(p[0], p[1]) } else { self.soft(p, depth, texture) }
    }

    /// The nearest vertebra, with a gap where it meets the next.
    fn vertebra(&self, p: Point) -> Nearness {
        let mut nearest = Nearness { distance: f32::MAX, cortex: 1.0 };
        let mut next = f32::MAX;
        let scale = self.patient.scale;
        if (p[0] - self.spine[0]).abs() > 70.0 * scale || (p[1] - self.spine[1] + 30.0 * scale).abs() > 70.0 * scale {
            return nearest;
        }
        for vertebra in &self.vertebrae {
            let nearness = vertebra.nearness(vertebra.local(p));
            if nearness.distance < nearest.distance {
                next = nearest.distance;
                nearest = nearness;
            } else {
                next = next.min(nearness.distance);
            }
        }
        nearest.distance = nearest.distance.max(0.5 * (JOINT - next + nearest.distance));
        nearest
    }

    /// The vertebra at the height of `p`, if `p` is near the spine, and `p` in its coordinates.
    fn beside(&self, p: Point) -> Option<(&'a Vertebra, Point)> {
        let scale = self.patient.scale;
        if (p[0] - self.spine[0]).abs() > 50.0 * scale || (p[1] - self.spine[1] + 12.0 * scale).abs() > 45.0 * scale {
            return None;
        }
        let locals = self.vertebrae.iter().map(|vertebra| (*vertebra, vertebra.local(p)));
        locals.min_by(|(_, a), (_, b)| a[2].abs().total_cmp(&b[2].abs()))
    }

    /// Hounsfield units inside a bone: a dense shell around spongy bone and marrow.
    fn bone(&self, near: Nearness, texture: &Texture, local: Option<(&Vertebra, Point)>) -> f32 {
        let tone = &self.patient.brightness;
        let depth = -near.distance;
        let mut spongy = tone.trabecular * (1.0 + 0.25 * texture.fine + 0.15 * texture.coarse);
        if let Some((vertebra, [u, v, w])) = local {
            // The basivertebral veins enter the body from behind.
            let behind = v + vertebra.half[1];
            if behind < 13.0 && w.abs() < 3.0 && u.abs() < 5.0 - 0.3 * behind {
                spongy *= 0.35;
            }
            // Bone is denser near the end plates.
            spongy *= 1.0 + 0.35 * smooth_step(0.6, 1.0, w.abs() / vertebra.half[2]);
        }
        let shell = 1.0 - smooth_step(near.cortex - 0.4, near.cortex + 0.8, depth);
        spongy + shell * (tone.cortical - spongy)
    }

    /// Depth below the skin, negative outside.
    fn depth(&self, x: f32, y: f32) -> f32 {
        let torso = &self.patient.torso;
        let valley = x / 20.0;
        let furrow = if y < 0.0 { torso.furrow / (1.0 + valley * valley) } else { 0.0 };
        let y = y - furrow;
        let [a, b] = [torso.half_width, torso.half_depth];
        // Round in front, flatter behind.
        let flat = 0.55 - 0.35 * (y / b).clamp(-1.0, 1.0);
        -(ellipse(x, y, a, b) * (1.0 - flat) + superellipse(x, y, a, b) * flat)
    }

    /// Outside the patient: air, and the table with its foam core and a thin mattress.
    fn table(&self, x: f32, y: f32) -> f32 {
        let lowest = -self.patient.torso.half_depth + self.patient.torso_shift(self.patient.spine_at(6.0)).min(0.0);
        let below = lowest - 1.0 + x * x / 700.0 - y;
        match below {
            b if b < 0.0 => AIR,
            b if b < 7.0 => -880.0,
            b if b < 10.0 => 60.0,
            b if b < 30.0 - x * x / 900.0 => -930.0,
            b if b < 33.0 - x * x / 900.0 => 60.0,
            _ => AIR,
        }
    }

    /// Thickness of the fat below the skin in the direction of `y`.
    fn fat(&self, y: f32) -> f32 {
        let torso = &self.patient.torso;
        let t = y / torso.half_depth;
        torso.fat * (0.6 + if t < 0.0 { 0.3 } else { 0.6 } * t * t)
    }

    fn add_necks(&mut self, index: usize) {
        let patient = self.patient;
        let vertebra = &patient.vertebrae[index];
        let scale = patient.scale;
        let [a, b, h] = vertebra.half;
        let tip = vertebra.transverse_tip;
        for (half, side) in [1.0, -1.0].into_iter().enumerate() {
            let at = |u: f32, v: f32, w: f32| vertebra.patient([side * u, v, w]);
            let head = at(a + 3.0 * scale, -b + 7.0 * scale, 0.75 * h);
            let tubercle = at(tip[0] + 6.0 * scale, tip[1] + 5.0 * scale, tip[2] - 3.0 * scale);
            self.necks[half].push(Rod::new(head, tubercle, [4.0 * scale, 3.4 * scale], 1.5));
            let x = side * 60.0 * scale + self.spine[0];
            let angle = [x, self.rib_line(x), vertebra.centre[2] - 14.0 * scale];
            self.necks[half].push(Rod::new(tubercle, angle, [3.4 * scale, 3.6 * scale], 1.7));
        }
    }

    /// Depth of the middle of the ribs below the skin; behind, they run under the muscles of the back.
    fn rib_depth(&self, x: f32, y: f32) -> f32 {
        let back = if y < 0.0 { 20.0 * smooth_step(0.75, 0.3, (x / self.patient.torso.half_width).abs()) } else { 0.0 };
        self.fat(y) + 6.0 + back
    }

    /// The y of the ribs behind, at `x`.
    fn rib_line(&self, x: f32) -> f32 {
        let [mut outside, mut inside] = [-self.patient.torso.half_depth, 0.0];
        for _ in 0..12 {
            let y = 0.5 * (outside + inside);
            *(if self.depth(x, y) < self.rib_depth(x, y) { &mut outside } else { &mut inside }) = y;
        }
        self.shift + inside
    }

    /// Distance from the ribs.
    fn rib(&self, p: Point, depth: f32) -> f32 {
        let right = p[0] > self.spine[0];
        let mut distance = f32::MAX;
        for neck in &self.necks[usize::from(!right)] {
            distance = distance.min(neck.distance(p));
        }
        let scale = self.patient.scale;
        let across = depth - self.rib_depth(p[0], p[1] - self.shift);
        if across.abs() > 8.0 || (p[0] - self.spine[0]).abs() < 56.0 * scale {
            return distance;
        }
        // Ribs fall from the spine towards the side and the front; the lowest are short.
        let angle =
            (p[0].abs() / self.patient.torso.half_width).atan2((self.shift - p[1]) / self.patient.torso.half_depth);
        for (index, vertebra) in self.patient.vertebrae.iter().enumerate().skip(5) {
            let end = [0.85, 1.35, 2.2, 2.5, 2.6, 2.7][index - 5];
            let drop = scale * (16.0 + 30.0 * (angle - 0.4).clamp(0.0, 1.8));
            let up = p[2] - (vertebra.centre[2] - drop);
            let past = (angle - end).max(0.0) * 100.0;
            let flat = up / 1.9;
            distance = distance.min((across * across + flat * flat + past * past).sqrt() - 3.5 * scale);
        }
        distance
    }

    /// Along the wing of an iliac bone from its middle, and across it from the inside out,
    /// in millimetres of an average adult.
    fn wing(&self, p: Point) -> [f32; 2] {
        let [x, y] = [0, 1].map(|axis| (p[axis] - self.spine[axis]) / self.patient.scale);
        let [along, across] = [0.64 * x.abs() + 0.77 * y - 44.0, 0.77 * x.abs() - 0.64 * y - 74.0];
        // The wing bends outwards in front and inwards behind.
        [along, across + 5.0 - along * along * (0.009 - 0.00008 * along)]
    }

    /// Half the length of the wing at the height of this section; negative above the crest.
    fn wing_length(&self, z: f32) -> f32 {
        let below = (self.patient.crest - z) / self.patient.scale;
        if below > 0.0 { (below * 62.0).sqrt() } else { below }
    }

    /// Distance from the iliac bones.
    fn ilium(&self, p: Point) -> f32 {
        let half = self.wing_length(p[2]);
        if half < -6.0 {
            return f32::MAX;
        }
        let [along, across] = self.wing(p);
        let past = (along.abs() - half + 3.0).max(0.0);
        let thickness = 4.2 + 1.5 * smooth_step(5.0, -35.0, along) + 2.0 * smooth_step(45.0, 10.0, half);
        self.patient.scale * ((across * across + past * past).sqrt() - thickness)
    }

    /// Large vessels in front of the spine.
    fn vessels(&self) -> Vec<Vessel> {
        let tone = &self.patient.brightness;
        let scale = self.patient.scale;
        let level = self.level;
        let mut vessels = Vec::new();
        let front = self.patient.vertebrae[(level.round().max(0.0) as usize).min(10)].half[1];
        let mut add = |offset: [f32; 2], radii: [f32; 2], value: f32, plaque: f32| {
            vessels.push(Vessel {
                middle: [self.spine[0] + scale * offset[0], self.spine[1] + front + scale * offset[1]],
                radii: radii.map(|radius| radius * scale),
                value,
                plaque,
            });
        };
        // The aorta divides at L4, the vena cava a little lower.
        let split = (1.0 - level).max(0.0) * 26.0;
        let wide = if split > 0.0 { 6.0 } else { 8.5 + 0.35 * level };
        for side in [-1.0, 1.0] {
            if side < 0.0 || split > 0.0 {
                add([-5.0 - 0.6 * level + side * split, wide + 2.5], [wide; 2], tone.aorta, tone.plaque);
            }
        }
        let split = (0.6 - level).max(0.0) * 26.0;
        let forward = if level > 5.0 { 8.0 + 9.0 * (level - 5.0).min(1.5) } else { 8.0 };
        for side in [-1.0, 1.0] {
            if side > 0.0 || split > 0.0 {
                add([17.0 - 0.4 * split + side * split, forward], [11.0, 8.0], tone.cava, 0.0);
            }
        }
        if level < 4.3 {
            let fore = 34.0 + 3.0 * (4.0 - level);
            add([-8.0, fore], [3.6, 3.6], tone.aorta, tone.plaque);
            add([5.0, fore + 2.0], [5.5, 5.0], tone.cava, 0.0);
        }
        vessels
    }

    /// Everything that is not bone, `depth` below the skin.
    fn soft(&self, p: Point, depth: f32, texture: &Texture) -> f32 {
        if depth < 1.8 {
            return 10.0;
        }
        if let Some((vertebra, local)) = self.beside(p)
            && let Some(value) = self.beside_bone(vertebra, local, texture)
        {
            return value;
        }
        let [x, y] = [p[0] - self.spine[0], p[1] - self.spine[1]];
        if let Some(value) = self.vessel(p, texture) {
            return value;
        }
        let inner = depth - self.fat(p[1] - self.shift) + 0.6 * texture.warp[0];
        if inner < 0.0 {
            // Thin septa run through the fat.
            return FAT + 6.0 * texture.fine + 70.0 * (1.0 - smooth_step(0.0, 0.05, texture.coarse.abs()));
        }
        let bent = [p[0] + texture.warp[0], p[1] + texture.warp[1], p[2]];
        if let Some(value) = self.muscle([x + texture.warp[0], y + texture.warp[1]], inner, texture) {
            return value;
        }
        if self.is_lung(bent, [x, y]) {
            return -860.0 + 60.0 * texture.fine + 700.0 * (1.0 - smooth_step(0.01, 0.05, texture.coarse.abs()));
        }
        for organ in &self.organs {
            let reach = organ.shape.reach();
            let near = |axis: usize| (bent[axis] - organ.shape.centre[axis]).abs() < reach;
            if near(0)
                && near(1)
                && let Some(value) = organ.at(bent, texture.fine, texture.coarse)
            {
                return value;
            }
        }
        // Fat with the vessels of the mesentery.
        FAT + 8.0 * texture.fine + 130.0 * (1.0 - smooth_step(0.02, 0.06, texture.coarse.abs()))
    }

    /// Discs, and what fills the spinal canal and the gaps between the arches.
    fn beside_bone(&self, vertebra: &Vertebra, local: Point, texture: &Texture) -> Option<f32> {
        let [u, v, w] = [local[0].abs(), local[1], local[2]];
        if vertebra.disc(local) {
            return Some(85.0 + 12.0 * texture.coarse);
        }
        let [half_width, depth] = vertebra.canal;
        let middle = v + vertebra.half[1] + 0.5 * depth;
        if ellipse(u, middle - 0.5, 0.66 * half_width, 0.42 * depth) < 0.0 {
            // The cord ends at L1.
            let cord = self.level > 3.8 && ellipse(u, middle, 5.0, 3.8) < 0.0;
            return Some(if cord { 44.0 } else { 18.0 + 8.0 * texture.fine });
        }
        if ellipse(u, middle, half_width, 0.5 * depth + 0.5) < 0.0 {
            return Some(-65.0);
        }
        // The foramina, with the ganglion of the root.
        if (half_width - 3.0..half_width + 9.0).contains(&u) && (-0.5 * depth..0.5 * depth).contains(&middle) {
            let root = ellipse(u - half_width - 3.0, middle - 2.0, 3.5, 3.0) < 0.0 && w < 0.0;
            return Some(if root { 35.0 } else { -75.0 });
        }
        None
    }

    fn vessel(&self, p: Point, texture: &Texture) -> Option<f32> {
        for vessel in &self.vessels {
            let [x, y] = [p[0] - vessel.middle[0], p[1] - vessel.middle[1]];
            let distance = ellipse(x, y, vessel.radii[0], vessel.radii[1]);
            if distance < 0.0 {
                let hard = distance > -1.6 && 0.5 + 0.7 * texture.coarse + 0.3 * texture.fine < vessel.plaque;
                return Some(if hard { 750.0 } else { vessel.value });
            }
            if distance < 1.0 {
                return Some(40.0);
            }
        }
        None
    }

    /// Muscles at `x`, `y` from the middle of the spine, `inner` below the fat under the skin.
    fn muscle(&self, [x, y]: [f32; 2], inner: f32, texture: &Texture) -> Option<f32> {
        let patient = self.patient;
        let tone = &patient.brightness;
        let [u, v] = [x.abs() / patient.scale, y / patient.scale];
        let streaks = smooth_step(
            1.0 - 1.6 * tone.fatty_muscle,
            1.1 - 0.6 * tone.fatty_muscle,
            0.5 + 0.3 * texture.fine + 0.35 * texture.coarse,
        );
        let value = tone.muscle + 4.0 * texture.coarse;
        let marbled = value + 0.8 * streaks * (FAT - value);
        // Erector spinae, and multifidus beside the spinous processes with a cleft between.
        let back = superellipse(u - 34.0, v + 52.0, 29.0, 22.0).min(ellipse(u - 12.0, v + 50.0, 13.0, 20.0));
        if back < 0.0 {
            let cleft = (u - 21.0 - 0.25 * (v + 60.0)).abs() < 0.8 && v < -46.0;
            return Some(if cleft { -30.0 } else { marbled });
        }
        if u < 7.0 && v < -30.0 && v > -68.0 {
            return Some(25.0);
        }
        let fall = (4.6 - self.level).max(0.0) * patient.psoas;
        let psoas = fall * 5.4;
        if psoas > 2.0 && ellipse(u - 22.5 - 0.72 * psoas, v + 6.0 - 1.2 * fall, 0.82 * psoas, 1.05 * psoas) < 0.0 {
            return Some(value);
        }
        // Quadratus lumborum; its fibres run from the twelfth rib to the iliac crest.
        let lumborum = smooth_step(5.3, 4.3, self.level);
        if lumborum > 0.1 && ellipse(u - 56.0, v + 24.0 - 0.3 * (u - 56.0), 20.0 * lumborum, 8.0 * lumborum) < 0.0 {
            return Some(marbled);
        }
        // Iliacus inside the iliac bone, the gluteal muscles outside.
        let half = self.wing_length(self.spine[2]);
        if half > 0.0 {
            let [along, across] = self.wing([x + self.spine[0], y + self.spine[1], 0.0]);
            if ellipse(along + 4.0, across - 2.0, half + 9.0, 6.0 + 0.3 * half) < 0.0 {
                return Some(value);
            }
        }
        self.wall(u, v, inner).map(|muscle| if muscle { value } else { -60.0 })
    }

    /// The wall of the belly: whether a point in it is muscle (or fat between its layers).
    fn wall(&self, u: f32, v: f32, inner: f32) -> Option<bool> {
        let patient = self.patient;
        let front = v > 40.0 && u < 62.0;
        // Strongest at the sides, where it has three layers; in front the two recti.
        let lateral = 0.8 + 0.6 * smooth_step(-40.0, 0.0, v);
        let thickness = patient.torso.wall * if front { 1.0 } else { lateral };
        if inner > thickness {
            return None;
        }
        if front {
            return Some(u > 3.0 && u < 59.0);
        }
        let layer = 3.0 * inner / thickness;
        Some((layer - 1.0).abs() > 0.13 && (layer - 2.0).abs() > 0.13)
    }

    /// Above the diaphragm, beside the spine, the aorta and the heart.
    fn is_lung(&self, p: Point, [x, y]: [f32; 2]) -> bool {
        let scale = self.patient.scale;
        let side = if x > 0.0 { 1.0 } else { -1.0 };
        let [across, along] = [(x.abs() - 62.0 * scale) / 95.0, (y - 32.0 * scale) / 92.0];
        let dome = self.patient.diaphragm - if side > 0.0 { 0.0 } else { 12.0 };
        let height = dome - 85.0 * scale * (across * across + along * along);
        let heart = ellipse(x + 12.0, y - 52.0 * scale, 48.0 * scale, 46.0 * scale) < 0.0;
        p[2] > height && x.abs() > 24.0 * scale && !heart
    }
}
