//! The organs of belly and chest: ellipsoids and what fills them.

use rand::RngExt;
use rand_chacha::ChaCha8Rng;

use super::anatomy::{Patient, between};
use super::shapes::{Ellipsoid, Point, dot, smooth_step};

/// What an organ is made of; Hounsfield units.
pub enum Filling {
    /// The same everywhere.
    Even(f32),
    /// Tissue with vessels that are brighter by the second number.
    Vessels(f32, f32),
    /// A cortex around darker pyramids and a fatty hilum.
    Kidney(f32),
    /// A wall around a fluid, with gas above a level (in half heights from the middle).
    Hollow { wall: f32, fluid: f32, level: f32 },
    /// A wall around stool: a crumbly mixture with gas.
    Stool { wall: f32 },
}

/// An ellipsoid of tissue.
pub struct Organ {
    pub shape: Ellipsoid,
    pub filling: Filling,
}

impl Organ {
    /// Hounsfield units at `p`, or none outside. `fine` and `coarse` are noise in [-1, 1].
    pub fn at(&self, p: Point, fine: f32, coarse: f32) -> Option<f32> {
        let unit = self.shape.unit(p);
        let square = dot(unit, unit);
        if square > 1.0 {
            return None;
        }
        let radii = self.shape.radii;
        let depth = (1.0 - square.sqrt()) * radii[0].min(radii[1]).min(radii[2]);
        Some(match self.filling {
            Filling::Even(value) => value,
            Filling::Vessels(value, vessel) => value + vessel * (1.0 - smooth_step(0.05, 0.11, coarse.abs())),
            Filling::Kidney(cortex) => {
                // The first axis points away from the spine; the hilum is on the other side.
                let hilum = (unit[0] + 0.75).powi(2) * 1.3 + unit[1] * unit[1] * 4.0 + unit[2] * unit[2] * 2.5;
                let pyramids = smooth_step(6.0, 9.0, depth + 2.0 * coarse);
                if hilum < 0.45 { -85.0 + 60.0 * fine.max(0.0) } else { cortex - 0.3 * (cortex - 30.0) * pyramids }
            }
            Filling::Hollow { wall, .. } | Filling::Stool { wall } if depth < 2.2 => wall,
            Filling::Hollow { fluid, level, .. } => {
                // Gas rises to the front, whichever way the gut lies.
                if (p[1] - self.shape.centre[1]) > level * self.shape.reach() { -960.0 } else { fluid }
            }
            Filling::Stool { .. } => {
                let gas = smooth_step(0.05, 0.35, 0.6 * coarse + 0.5 * fine + 0.3 * unit[1]);
                25.0 - 120.0 * fine.abs() - 800.0 * gas
            }
        })
    }
}

/// All organs; later ones lie over earlier ones.
pub fn organs(rng: &mut ChaCha8Rng, patient: &Patient) -> Vec<Organ> {
    let mut organs = Vec::new();
    bowel(rng, patient, &mut organs);
    colon(rng, patient, &mut organs);
    upper(rng, patient, &mut organs);
    kidneys(rng, patient, &mut organs);
    organs
}

/// `offset` from the middle of the spine at `level`, in millimetres of an average adult.
fn place(patient: &Patient, level: f32, offset: [f32; 2]) -> Point {
    let [x, y, z] = patient.spine_at(level);
    [x + patient.scale * offset[0], y + patient.scale * offset[1], z]
}

fn kidneys(rng: &mut ChaCha8Rng, patient: &Patient, organs: &mut Vec<Organ>) {
    let scale = patient.scale;
    let cortex = patient.brightness.kidney;
    for (side, level, angle) in [(1.0, 2.9, -0.45), (-1.0, 3.4, 0.45)] {
        let level = level + between(rng, -0.4, 0.4);
        let centre = place(patient, level, [side * between(rng, 62.0, 69.0), between(rng, -6.0, 4.0)]);
        let radii = [27.0, 25.0, 54.0].map(|radius| scale * radius * between(rng, 0.9, 1.08));
        // The kidney's first axis points outwards and back.
        let outwards = if side > 0.0 { angle } else { std::f32::consts::PI + angle };
        // Fat surrounds it, most of all behind.
        let fat = between(rng, 5.0, 11.0);
        let bed = [centre[0], centre[1] - 0.9 * fat, centre[2] - 4.0];
        let capsule = Ellipsoid::new(bed, [radii[0] + fat, radii[1] + fat, radii[2] + 2.0], outwards);
        organs.push(Organ { shape: capsule, filling: Filling::Even(-100.0) });
        organs.push(Organ { shape: Ellipsoid::new(centre, radii, outwards), filling: Filling::Kidney(cortex) });
        if rng.random::<f32>() < 0.25 {
            let size = between(rng, 7.0, 20.0);
            let cyst = [centre[0] + side * 0.8 * radii[0], centre[1], centre[2] + between(rng, -30.0, 30.0)];
            organs.push(Organ { shape: Ellipsoid::new(cyst, [size; 3], 0.0), filling: Filling::Even(6.0) });
        }
        if rng.random::<f32>() < 0.3 {
            let size = between(rng, 2.5, 5.0);
            let stone =
                [centre[0] - side * 6.0, centre[1] + between(rng, -5.0, 5.0), centre[2] + between(rng, -25.0, 25.0)];
            organs.push(Organ { shape: Ellipsoid::new(stone, [size; 3], 0.0), filling: Filling::Even(900.0) });
        }
    }
}

/// Liver, gall bladder, spleen, stomach, pancreas, duodenum.
fn upper(rng: &mut ChaCha8Rng, patient: &Patient, organs: &mut Vec<Organ>) {
    let tone = &patient.brightness;
    let scale = patient.scale;
    let vessel = 0.45 * (tone.cava - 40.0) + 6.0;
    let mut add = |level: f32, offset: [f32; 2], radii: Point, angle: f32, filling: Filling| {
        let shape = Ellipsoid::new(place(patient, level, offset), radii.map(|radius| scale * radius), angle);
        organs.push(Organ { shape, filling });
    };
    let full = between(rng, -0.3, 0.6);
    let stomach = Filling::Hollow { wall: tone.gut + 10.0, fluid: tone.drink, level: full };
    add(5.0 + between(rng, -0.4, 0.4), [-52.0, 68.0], [46.0, 32.0, 52.0], -0.5, stomach);
    let fundus = Filling::Hollow { wall: tone.gut + 10.0, fluid: tone.drink, level: 0.9 };
    add(6.4, [-52.0, 26.0], [42.0, 40.0, 46.0], 0.3, fundus);
    add(4.1, [-14.0, 42.0], [42.0, 10.0, 11.0], -0.35, Filling::Vessels(tone.gut + 8.0, -20.0));
    add(3.4, [28.0, 44.0], [17.0, 14.0, 34.0], 0.3, Filling::Hollow { wall: tone.gut, fluid: tone.drink, level: 0.8 });
    let low = between(rng, 4.6, 5.8);
    add(low, [78.0, 44.0], [72.0, 82.0, 86.0], 0.1, Filling::Vessels(tone.liver, vessel));
    add(low + 0.5, [20.0, 84.0], [78.0, 34.0, 52.0], -0.15, Filling::Vessels(tone.liver, vessel));
    let gall = place(patient, low - 1.6, [52.0, 66.0]);
    add(low - 1.6, [52.0, 66.0], [15.0, 19.0, 26.0], 0.2, Filling::Hollow { wall: tone.gut, fluid: 10.0, level: 2.0 });
    add(5.6, [-94.0, 2.0], [24.0, 46.0, 48.0], 0.35, Filling::Vessels(tone.spleen, 6.0));
    if rng.random::<f32>() < 0.25 {
        let stone = Ellipsoid::new([gall[0], gall[1] - 11.0 * scale, gall[2]], [5.0, 4.0, 5.0], 0.0);
        organs.push(Organ { shape: stone, filling: Filling::Even(320.0) });
    }
}

/// Loops of small bowel in front of the lumbar spine.
fn bowel(rng: &mut ChaCha8Rng, patient: &Patient, organs: &mut Vec<Organ>) {
    let tone = &patient.brightness;
    let torso = &patient.torso;
    for _ in 0..rng.random_range(70..120) {
        let level = between(rng, -1.5, 4.2);
        let [_, y, z] = place(patient, level.max(0.0), [0.0, 0.0]);
        let room = torso.half_depth - torso.fat - torso.wall - 18.0;
        let centre = [
            between(rng, -0.68, 0.68) * torso.half_width,
            between(rng, y + 42.0 * patient.scale, room.max(y + 50.0)),
            z + if level < 0.0 { 36.0 * level } else { 0.0 },
        ];
        let radii = [between(rng, 12.0, 30.0), between(rng, 11.0, 15.0), between(rng, 11.0, 20.0)];
        let fluid = if rng.random::<f32>() < 0.6 { tone.drink } else { between(rng, 5.0, 35.0) };
        let level = if rng.random::<f32>() < 0.25 { between(rng, -0.2, 0.7) } else { 2.0 };
        organs.push(Organ {
            shape: Ellipsoid::new(centre, radii, between(rng, -1.5, 1.5)),
            filling: Filling::Hollow { wall: tone.gut, fluid, level },
        });
    }
}

/// Ascending, transverse and descending colon.
fn colon(rng: &mut ChaCha8Rng, patient: &Patient, organs: &mut Vec<Organ>) {
    let wall = patient.brightness.gut - 8.0;
    let side = patient.torso.half_width - patient.torso.fat - patient.torso.wall;
    for sign in [1.0, -1.0] {
        let width = between(rng, 16.0, 25.0) - if sign < 0.0 { 4.0 } else { 0.0 };
        let top = if sign > 0.0 { 3.0 } else { 4.6 };
        let mut level: f32 = -1.0;
        while level < top {
            let [_, y, z] = place(patient, level.max(0.0), [0.0, between(rng, 12.0, 22.0)]);
            let centre = [sign * (side - width - between(rng, 3.0, 8.0)), y, z + 36.0 * level.min(0.0)];
            let radii = [width * between(rng, 0.85, 1.1), width * between(rng, 0.85, 1.15), 24.0];
            let filling = if rng.random::<f32>() < 0.6 {
                Filling::Stool { wall }
            } else {
                Filling::Hollow { wall, fluid: between(rng, 10.0, 60.0), level: between(rng, -0.9, 0.5) }
            };
            organs.push(Organ { shape: Ellipsoid::new(centre, radii, 0.0), filling });
            level += 0.8;
        }
    }
    let level = between(rng, 1.6, 3.4);
    let front = patient.torso.half_depth - patient.torso.fat - patient.torso.wall - 24.0;
    for step in 0..7 {
        let x = (step as f32 / 3.0 - 1.0) * (side - 30.0);
        let z = patient.spine_at(level)[2] + 14.0 * (x / side).powi(2) + between(rng, -5.0, 5.0);
        let radii = [between(rng, 17.0, 24.0), between(rng, 15.0, 21.0), between(rng, 15.0, 22.0)];
        let filling = Filling::Hollow { wall, fluid: between(rng, 10.0, 60.0), level: between(rng, -0.9, 0.6) };
        organs.push(Organ { shape: Ellipsoid::new([x, front - 16.0 * (x / side).powi(2), z], radii, 0.0), filling });
    }
}
