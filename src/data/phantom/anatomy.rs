//! One patient: what is drawn by lot, and where the spine and the organs lie.
//!
//! Patient coordinates are RAS+ millimetres; x = 0 is the middle of the body, y = 0 the middle
//! between belly and back, z = 0 the middle of L5.

use rand::RngExt;
use rand_chacha::ChaCha8Rng;

use super::organs::{Organ, organs};
use super::shapes::{Point, smooth_step};
use super::vertebra::{LEVELS, Placement, Vertebra};

/// A number between `low` and `high`, all equally likely.
pub fn between(rng: &mut ChaCha8Rng, low: f32, high: f32) -> f32 {
    low + (high - low) * rng.random::<f32>()
}

/// The skin and what lies below it.
pub struct Torso {
    pub half_width: f32,
    pub half_depth: f32,
    /// Thickness of the fat under the skin, and of the muscles below.
    pub fat: f32,
    pub wall: f32,
    /// Depth of the furrow along the back.
    pub furrow: f32,
}

/// Hounsfield units that depend on the patient's age and on the contrast medium.
pub struct Brightness {
    pub trabecular: f32,
    pub cortical: f32,
    pub aorta: f32,
    pub cava: f32,
    pub muscle: f32,
    /// Part of the muscles that has turned to fat.
    pub fatty_muscle: f32,
    /// Part of the wall of the aorta that is calcified.
    pub plaque: f32,
    /// What contrast medium adds to liver, spleen, kidneys and walls of the gut.
    pub liver: f32,
    pub spleen: f32,
    pub kidney: f32,
    pub gut: f32,
    /// What the patient drank: water, or a contrast medium.
    pub drink: f32,
}

/// The scanner and how the patient lies in it.
pub struct Scanner {
    /// Edge of the square field of view, millimetres.
    pub field_of_view: f32,
    /// Middle of the field of view, and the patient's turn about z (radians).
    pub shift: [f32; 2],
    pub turn: f32,
    /// Standard deviation of the noise, and of the streaks across the body, Hounsfield units.
    pub noise: f32,
    pub streaks: f32,
    /// Standard deviation of the point spread function, millimetres.
    pub blur: f32,
    /// Darkening towards the middle by beam hardening, Hounsfield units.
    pub cupping: f32,
}

/// Everything that does not depend on the voxel.
pub struct Patient {
    /// L5 first.
    pub vertebrae: Vec<Vertebra>,
    pub scale: f32,
    pub torso: Torso,
    pub brightness: Brightness,
    pub scanner: Scanner,
    pub organs: Vec<Organ>,
    /// Strength of the psoas, 1 on average.
    pub psoas: f32,
    /// Height of the iliac crests.
    pub crest: f32,
    /// Height of the right dome of the diaphragm.
    pub diaphragm: f32,
    /// Distinguishes this patient's textures.
    pub texture: u32,
}

impl Patient {
    pub fn new(rng: &mut ChaCha8Rng) -> Self {
        let scale = between(rng, 0.9, 1.1);
        let frailty = rng.random::<f32>();
        let torso = torso(rng, scale);
        let back = -torso.half_depth + 0.9 * torso.fat + torso.furrow + 4.0 + 72.0 * scale;
        let vertebrae = spine(rng, scale, frailty, back);
        let brightness = brightness(rng, frailty);
        let mut patient = Patient {
            scale,
            scanner: scanner(rng, &torso),
            torso,
            organs: Vec::new(),
            psoas: between(rng, 0.8, 1.25) - 0.2 * frailty,
            crest: vertebrae[0].centre[2] + scale * between(rng, 8.0, 34.0),
            diaphragm: vertebrae[7].centre[2] + scale * between(rng, 0.0, 40.0),
            vertebrae,
            brightness,
            texture: rng.random(),
        };
        patient.organs = organs(rng, &patient);
        patient
    }

    /// How many levels above L5 the height `z` is (L1 is 4, T12 is 5), between the middles of bodies.
    pub fn level(&self, z: f32) -> f32 {
        let above = self.vertebrae.partition_point(|vertebra| vertebra.centre[2] < z);
        let below = above.clamp(1, self.vertebrae.len() - 1) - 1;
        let [low, high] = [below, below + 1].map(|index| self.vertebrae[index].centre[2]);
        below as f32 + (z - low) / (high - low)
    }

    /// The middle of the spine's bodies at a level as [`Patient::level`] counts them.
    pub fn spine_at(&self, level: f32) -> Point {
        let below = (level.floor() as usize).min(self.vertebrae.len() - 2);
        let (low, high) = (&self.vertebrae[below].centre, &self.vertebrae[below + 1].centre);
        let t = level - below as f32;
        let s = smooth_step(0.0, 1.0, t);
        let t = 0.5 * (t + s);
        std::array::from_fn(|axis| low[axis] + t * (high[axis] - low[axis]))
    }

    /// How far the torso is shifted towards the front at the height of `spine`: the back follows
    /// the curves of the spine, but less.
    pub fn torso_shift(&self, spine: Point) -> f32 {
        0.6 * (spine[1] - self.vertebrae[2].centre[1])
    }
}

fn torso(rng: &mut ChaCha8Rng, scale: f32) -> Torso {
    let fat = 7.0 + 22.0 * rng.random::<f32>().powi(2);
    let belly = between(rng, 0.0, 20.0);
    Torso {
        half_width: 122.0 * scale + 0.9 * fat + 0.3 * belly,
        half_depth: 92.0 * scale + 0.7 * fat + 0.6 * belly,
        fat,
        wall: between(rng, 8.0, 13.0),
        furrow: between(rng, 2.0, 8.0),
    }
}

/// Vertebrae from L5 upwards; `back` is the y of the middle of L3.
fn spine(rng: &mut ChaCha8Rng, scale: f32, frailty: f32, back: f32) -> Vec<Vertebra> {
    let lordosis = between(rng, 0.5, 1.35);
    let tilt = between(rng, -4.0, 4.0);
    let scoliosis = between(rng, -1.0, 1.0).powi(3) * 9.0 + between(rng, -1.5, 1.5);
    let phase = between(rng, 0.0, 6.0);
    let lipping = 3.5 * frailty * rng.random::<f32>();
    let mut placements: Vec<Placement> = Vec::new();
    let mut centre = [0.0f32; 3];
    for (index, level) in LEVELS.iter().enumerate() {
        let wave = index as f32 * 0.75 + phase;
        let pitch = (lordosis * level.pitch + tilt + between(rng, -1.5, 1.5)).to_radians();
        let roll = (scoliosis * wave.sin()).to_radians();
        let yaw = (0.9 * scoliosis * wave.cos() + between(rng, -1.0, 1.0)).to_radians();
        if let Some(below) = placements.last() {
            let lower = &LEVELS[index - 1];
            // Frail discs are flat.
            let disc = lower.disc * (1.0 - 0.25 * frailty * rng.random::<f32>());
            for (length, pitch, roll) in
                [(0.5 * (lower.height + disc), below.pitch, below.roll), (0.5 * (level.height + disc), pitch, roll)]
            {
                centre[0] += scale * length * roll.sin();
                centre[1] += scale * length * pitch.sin();
                centre[2] += scale * length * pitch.cos();
            }
        }
        let fractured = frailty > 0.55 && rng.random::<f32>() < 0.18;
        placements.push(Placement {
            centre,
            pitch,
            roll,
            yaw,
            scale: scale * between(rng, 0.98, 1.02),
            wedge: if fractured { between(rng, 0.25, 0.7) } else { between(rng, 0.0, 0.08) },
            dish: between(rng, 0.8, 2.0) + if fractured { 2.0 } else { 1.5 * frailty },
            lipping: lipping * between(rng, 0.3, 1.0),
        });
    }
    let middle = (0..8).map(|index| placements[index].centre[0]).sum::<f32>() / 8.0;
    let front = placements[2].centre[1];
    let move_to_place = |place: &mut Placement| {
        place.centre[0] -= middle;
        place.centre[1] += back - front;
    };
    placements.iter_mut().for_each(move_to_place);
    LEVELS.iter().zip(&placements).map(|(level, place)| Vertebra::new(level, place)).collect()
}

fn brightness(rng: &mut ChaCha8Rng, frailty: f32) -> Brightness {
    // Without contrast medium, arterial phase, or portal venous phase.
    let phase = rng.random_range(0..4);
    let mut vary = |value: f32| value * between(rng, 0.85, 1.15);
    let [aorta, cava, liver, spleen, kidney, gut] = match phase {
        0 => [0.0, 0.0, 0.0, 0.0, 0.0, 0.0],
        1 => [270.0, 50.0, 15.0, 75.0, 130.0, 45.0],
        _ => [120.0, 105.0, 55.0, 70.0, 150.0, 40.0],
    }
    .map(&mut vary);
    Brightness {
        trabecular: vary(235.0 - 165.0 * frailty),
        cortical: vary(1100.0 - 250.0 * frailty),
        aorta: 42.0 + aorta,
        cava: 40.0 + cava,
        muscle: 60.0 - 10.0 * frailty,
        fatty_muscle: 0.05 + 0.5 * frailty * rng.random::<f32>(),
        plaque: 0.75 * (frailty - 0.25).max(0.0),
        liver: if rng.random::<f32>() < 0.2 { 25.0 } else { 58.0 } + liver,
        spleen: 48.0 + spleen,
        kidney: 33.0 + kidney,
        gut: 38.0 + gut,
        // A contrast medium to drink is commonest where none is injected.
        drink: if rng.random::<f32>() < if phase == 0 { 0.8 } else { 0.35 } {
            between(rng, 150.0, 420.0)
        } else {
            between(rng, 5.0, 30.0)
        },
    }
}

fn scanner(rng: &mut ChaCha8Rng, torso: &Torso) -> Scanner {
    let field_of_view = (2.0 * torso.half_width * between(rng, 0.86, 1.02)).clamp(220.0, 300.0);
    // The back is near the lower edge, with the table behind it.
    let lowest = -torso.half_depth - between(rng, 22.0, 55.0);
    Scanner {
        field_of_view,
        shift: [between(rng, -7.0, 7.0), lowest + 0.5 * field_of_view],
        turn: between(rng, -4.0, 4.0).to_radians(),
        noise: between(rng, 9.0, 28.0),
        streaks: 9.0 * rng.random::<f32>().powi(2),
        blur: between(rng, 0.6, 1.15),
        cupping: between(rng, 0.0, 14.0),
    }
}
