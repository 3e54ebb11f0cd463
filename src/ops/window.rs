//! How a kernel moves over a tensor: its size, stride and padding along depth, height and width.

/// A kernel's window. A 2D kernel has depth 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Window {
    pub kernel: [usize; 3],
    pub stride: [usize; 3],
    /// Zeros before the first and after the last element of each axis.
    pub padding: [usize; 3],
}

impl Window {
    /// A square 2D window.
    pub const fn square(kernel: usize, stride: usize, padding: usize) -> Self {
        Window { kernel: [1, kernel, kernel], stride: [1, stride, stride], padding: [0, padding, padding] }
    }

    /// A square 2D window of odd size that keeps the size of what it moves over.
    pub const fn same(kernel: usize) -> Self {
        Window::square(kernel, 1, kernel / 2)
    }

    /// A cubic 3D window.
    pub fn cube(kernel: usize, stride: usize, padding: usize) -> Self {
        Window { kernel: [kernel; 3], stride: [stride; 3], padding: [padding; 3] }
    }

    /// Elements of the kernel.
    pub fn taps(&self) -> usize {
        self.kernel.iter().product()
    }

    /// Depth, height and width of the result, or what is wrong.
    pub fn output(&self, spatial: [usize; 3]) -> Result<[usize; 3], String> {
        let mut output = [0; 3];
        for axis in 0..3 {
            let (kernel, stride, padding) = (self.kernel[axis], self.stride[axis], self.padding[axis]);
            let padded = spatial[axis] + 2 * padding;
            if kernel == 0 || stride == 0 || padding >= kernel || padded < kernel {
                return Err(format!("{self:?} does not fit {spatial:?} (depth, height, width)"));
            }
            output[axis] = (padded - kernel) / stride + 1;
        }
        Ok(output)
    }

    /// The offsets of the kernel's elements, depth slowest.
    pub fn offsets(&self) -> impl Iterator<Item = [usize; 3]> + use<> {
        let [depth, height, width] = self.kernel;
        (0..depth * height * width).map(move |tap| [tap / (height * width), tap / width % height, tap % width])
    }
}
