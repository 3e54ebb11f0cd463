//! Where voxels land in a picture, and in which colour.

use crate::data::{message, volume};
use rarunet_cuda::data::{Geometry, Volume};
use rarunet_cuda::report::palette::{PREDICTION, REFERENCE};
use rarunet_cuda::report::{CasePictures, DISPLAY_WINDOW, montage, overlay};

/// A decoded picture.
struct Picture {
    width: usize,
    height: usize,
    pixels: Vec<[u8; 3]>,
}

impl Picture {
    fn decode(bytes: &[u8]) -> Self {
        let mut reader = png::Decoder::new(std::io::Cursor::new(bytes)).read_info().unwrap();
        let mut buffer = vec![0; reader.output_buffer_size().unwrap()];
        let info = reader.next_frame(&mut buffer).unwrap();
        assert_eq!((info.color_type, info.bit_depth), (png::ColorType::Rgb, png::BitDepth::Eight));
        let pixels = buffer[..info.buffer_size()].chunks_exact(3).map(|rgb| [rgb[0], rgb[1], rgb[2]]).collect();
        Picture { width: info.width as usize, height: info.height as usize, pixels }
    }

    /// The pixel at these shares of the width and the height.
    fn at(&self, across: f64, down: f64) -> [u8; 3] {
        let (x, y) = ((across * self.width as f64) as usize, (down * self.height as f64) as usize);
        self.pixels[y * self.width + x]
    }

    fn count(&self, what: impl Fn([u8; 3]) -> bool) -> usize {
        self.pixels.iter().filter(|&&pixel| what(pixel)).count()
    }
}

fn grid(shape: [usize; 3], spacing: [f64; 3]) -> Geometry {
    Geometry::axis_aligned(shape, spacing)
}

fn air(geometry: &Geometry) -> Volume<f32> {
    volume(geometry.clone(), |_, _, _| -1000.0)
}

/// A mask of the voxels from `first` up to `end` along x, and of the middle half along y.
fn bar(geometry: &Geometry, first: usize, end: usize) -> Volume<u8> {
    let quarter = geometry.shape[1] / 4;
    let inside = |x, y| (first..end).contains(&x) && (quarter..3 * quarter).contains(&y);
    volume(geometry.clone(), |x, y, _| u8::from(inside(x, y)))
}

#[test]
fn right_is_on_the_left_and_front_is_up() {
    let geometry = grid([64, 64, 3], [1.0, 1.0, 3.0]);
    // The voxel furthest to the right and to the front, in the middle slice alone.
    let image = volume(geometry, |x, y, z| if (x, y, z) == (63, 63, 1) { 400.0 } else { -1000.0 });
    let picture = Picture::decode(&overlay(&image, None, None, 1, DISPLAY_WINDOW).unwrap());
    assert_eq!((picture.width, picture.height), (384, 384));
    assert_eq!(picture.at(0.0, 0.0), [255; 3]);
    for (across, down) in [(0.999, 0.0), (0.0, 0.999), (0.999, 0.999), (0.5, 0.5)] {
        assert_eq!(picture.at(across, down), [0; 3]);
    }
    let below = Picture::decode(&overlay(&image, None, None, 0, DISPLAY_WINDOW).unwrap());
    assert_eq!(below.count(|pixel| pixel != [0; 3]), 0);
}

#[test]
fn pictures_keep_millimetres_and_bounds() {
    let size = |shape, spacing| {
        let geometry = grid(shape, spacing);
        let picture = Picture::decode(&overlay(&air(&geometry), None, None, 0, DISPLAY_WINDOW).unwrap());
        (picture.width, picture.height)
    };
    // Twice as wide voxels, twice as wide a picture.
    assert_eq!(size([64, 64, 1], [2.0, 1.0, 1.0]), (384, 192));
    assert_eq!(size([64, 64, 1], [1.0, 2.0, 1.0]), (192, 384));
    assert_eq!(size([100, 50, 1], [0.5, 0.5, 1.0]), (400, 200));
    assert_eq!(size([512, 512, 1], [0.7, 0.7, 1.0]), (512, 512));
    assert_eq!(size([2048, 1024, 1], [0.1, 0.1, 1.0]), (1024, 512));
    assert_eq!(size([1, 3000, 1], [1.0, 1.0, 1.0]), (1, 1024));
    assert_eq!(size([1, 1, 1], [1.0, 1.0, 1.0]), (384, 384));
}

#[test]
fn grey_follows_the_window() {
    let geometry = grid([3, 1, 1], [1.0; 3]);
    let image = volume(geometry, |x, _, _| [400.0, 100.0, -200.0][x]);
    let centres = |window| {
        let picture = Picture::decode(&overlay(&image, None, None, 0, window).unwrap());
        [5.0, 3.0, 1.0].map(|sixth: f64| picture.at(sixth / 6.0, 0.5)[0])
    };
    let [white, middle, black] = centres(DISPLAY_WINDOW);
    assert!(white >= 253 && middle.abs_diff(127) <= 2 && black <= 2, "{white} {middle} {black}");
    let [white, middle, black] = centres([-1000.0, 1000.0]);
    assert!(white.abs_diff(178) <= 2 && middle.abs_diff(140) <= 2 && black.abs_diff(102) <= 2);
}

#[test]
fn contours_and_tints_tell_the_masks_apart() {
    let geometry = grid([64, 64, 1], [1.0; 3]);
    let image = air(&geometry);
    let (reference, prediction) = (bar(&geometry, 16, 40), bar(&geometry, 24, 48));
    let picture = Picture::decode(&overlay(&image, Some(&reference), Some(&prediction), 0, DISPLAY_WINDOW).unwrap());
    // x runs from right to left in the picture: voxel 16 begins at share 1 - 16/64.
    let at = |x: f64| picture.at(1.0 - x / 64.0, 0.5);
    let tinted = |colour: [u8; 3]| colour.map(|value| (f32::from(value) * 0.3).round() as u8);
    assert_eq!(at(16.0), REFERENCE.bright);
    assert_eq!(at(48.0), PREDICTION.bright);
    assert_eq!(at(20.0), tinted(REFERENCE.bright), "only the reference");
    assert_eq!(at(44.0), tinted(PREDICTION.bright), "only the prediction");
    assert_eq!(at(32.0), [0; 3], "both: the image stays to be seen");
    assert_eq!(at(8.0), [0; 3]);
    assert_eq!(at(56.0), [0; 3]);
}

#[test]
fn both_contours_are_seen_where_masks_agree() {
    for (size, spacing) in [(64, 1.0), (128, 0.8), (512, 0.4)] {
        let geometry = grid([size, size, 1], [spacing; 3]);
        let mask = bar(&geometry, size / 4, size / 2);
        let picture = Picture::decode(&overlay(&air(&geometry), Some(&mask), Some(&mask), 0, DISPLAY_WINDOW).unwrap());
        // A quarter and a half, twice each.
        let length = picture.width * 3 / 2;
        for colour in [REFERENCE.bright, PREDICTION.bright] {
            let near = |pixel: [u8; 3]| pixel.iter().zip(colour).all(|(&a, b)| a.abs_diff(b) <= 30);
            let count = picture.count(near);
            assert!(count > length, "{count} pixels of {colour:?} at {size}");
        }
    }
}

#[test]
fn a_montage_holds_its_slices() {
    let geometry = grid([64, 32, 5], [1.0, 1.0, 3.0]);
    let image = volume(geometry, |_, _, z| if z == 3 { 1000.0 } else { -1000.0 });
    let picture = Picture::decode(&montage(&image, None, None, &[0, 3, 4], DISPLAY_WINDOW).unwrap());
    assert_eq!((picture.width, picture.height), (2 * 384 + 4, 2 * 192 + 4));
    assert_eq!(picture.at(0.25, 0.25), [0; 3]);
    assert_eq!(picture.at(0.75, 0.25), [255; 3]);
    assert_eq!(picture.at(0.25, 0.75), [0; 3]);
    let gap = picture.at(0.75, 0.75);
    assert!(gap != [0; 3] && gap != [255; 3]);
    assert_eq!(picture.at(0.5, 0.25), gap);
    assert!(message(montage(&image, None, None, &[], DISPLAY_WINDOW)).contains("no slices"));
}

#[test]
fn what_does_not_fit_is_an_error() {
    let geometry = grid([8, 8, 2], [1.0; 3]);
    let image = air(&geometry);
    let other = bar(&grid([8, 7, 2], [1.0; 3]), 2, 4);
    let shifted = bar(&grid([8, 8, 2], [1.0, 2.0, 1.0]), 2, 4);
    let picture = |reference, prediction, z, window| message(overlay(&image, reference, prediction, z, window));
    assert!(picture(Some(&other), None, 0, DISPLAY_WINDOW).contains("reference mask"));
    assert!(picture(None, Some(&shifted), 0, DISPLAY_WINDOW).contains("predicted mask"));
    assert!(picture(None, None, 2, DISPLAY_WINDOW).contains("from 0 to 1"));
    for window in [[400.0, -200.0], [0.0, f32::NAN], [f32::NEG_INFINITY, 0.0]] {
        assert!(picture(None, None, 0, window).contains("display window"));
    }
    let mut turned = image.clone();
    turned.geometry.affine[0][0] = -1.0;
    assert!(message(overlay(&turned, None, None, 0, DISPLAY_WINDOW)).contains("LAS"));
    let empty = Volume::new(grid([0, 8, 2], [1.0; 3]), Vec::new()).unwrap();
    assert!(message(overlay(&empty, None, None, 0, DISPLAY_WINDOW)).contains("without voxels"));
}

#[test]
fn pictures_of_a_case_turn_any_orientation() {
    let ras = grid([32, 32, 6], [1.0, 1.0, 2.0]);
    let mut las = ras.clone();
    (las.affine[0][0], las.affine[0][3]) = (-1.0, 31.0);
    let bright = |x, y, z| if x > 20 && y > 24 && z > 3 { 400.0 } else { -200.0 };
    let draw = |image: Volume<f32>, mask: Volume<u8>| {
        CasePictures::draw("case", None, &image, Some(&mask), Some(&mask), 3).unwrap()
    };
    let straight = draw(volume(ras.clone(), bright), volume(ras, |x, _, _| u8::from(x > 20)));
    let mirrored =
        draw(volume(las.clone(), |x, y, z| bright(31 - x, y, z)), volume(las, |x, _, _| u8::from(31 - x > 20)));
    assert_eq!(straight, mirrored);
    let labels: Vec<&str> = straight.slices.iter().map(|(label, _)| label.as_str()).collect();
    assert_eq!(labels, ["slice 0, Dice 1.0000", "slice 2, Dice 1.0000", "slice 5, Dice 1.0000"]);
}
