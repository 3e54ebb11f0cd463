//! The part of cuDNN that computes convolutions, from its library if there is one: nothing is linked.

use cudarc::driver::{CudaSlice, CudaStream, DevicePtr};
use libloading::Library;
use rarunet_cuda::device::Precision;
use rarunet_cuda::device::kernels::Element;
use rarunet_cuda::ops::window::Window;
use rarunet_cuda::tensor::Storage;
use std::ffi::{CStr, c_char, c_int, c_void};
use std::sync::Arc;

/// Where the library is sought; `RARUNET_CUDNN_LIBRARY` names another.
const NAMES: [&str; 2] = ["libcudnn.so.9", "libcudnn.so"];
/// Bytes of memory that an algorithm may use beside its tensors.
const WORKSPACE: usize = 512 << 20;
/// Algorithms that are told of at most.
const MOST_ALGORITHMS: usize = 16;

// Values of cuDNN's enumerations, as its headers have them.
const SUCCESS: c_int = 0;
const DATA_FLOAT: c_int = 0;
const DATA_HALF: c_int = 2;
const DATA_BFLOAT16: c_int = 9;
const TENSOR_NHWC: c_int = 1;
const CROSS_CORRELATION: c_int = 1;
const TENSOR_OP_MATH: c_int = 1;
const FMA_MATH: c_int = 3;

type Status = c_int;
/// A handle or a descriptor.
type Object = *mut c_void;
type Create = unsafe extern "C" fn(*mut Object) -> Status;
type Destroy = unsafe extern "C" fn(Object) -> Status;
/// Handle; descriptor and address of two tensors; convolution; of the result; how many algorithms are wanted and found,
/// and these; workspace.
type Find = unsafe extern "C" fn(
    Object,
    Object,
    *const c_void,
    Object,
    *const c_void,
    Object,
    Object,
    *mut c_void,
    c_int,
    *mut c_int,
    *mut Performance,
    *mut c_void,
    usize,
) -> Status;
/// Handle; descriptors of two tensors, of the convolution and of the result; how many algorithms are wanted and given, and
/// these.
type Expect =
    unsafe extern "C" fn(Object, Object, Object, Object, Object, c_int, *mut c_int, *mut Performance) -> Status;
/// Handle; factor; descriptor and address of two tensors; convolution; algorithm; workspace; factor of what the result
/// was; descriptor and address of it.
type Run = unsafe extern "C" fn(
    Object,
    *const c_void,
    Object,
    *const c_void,
    Object,
    *const c_void,
    Object,
    c_int,
    *mut c_void,
    usize,
    *const c_void,
    Object,
    *mut c_void,
) -> Status;

/// How an algorithm did.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default)]
struct Performance {
    algorithm: c_int,
    status: Status,
    milliseconds: f32,
    workspace: usize,
    determinism: c_int,
    math: c_int,
    reserved: [c_int; 3],
}

impl Performance {
    fn algorithm(&self) -> Algorithm {
        Algorithm { number: self.algorithm, math: self.math }
    }
}

/// Those of the first `count` that work within the workspace.
fn working(found: &[Performance], count: c_int) -> Vec<Performance> {
    let found = &found[..usize::try_from(count).unwrap_or(0)];
    found.iter().filter(|one| one.status == SUCCESS && one.workspace <= WORKSPACE).copied().collect()
}

/// What is computed from what.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Primitive {
    /// The map, from image and weights.
    Forward,
    /// The image, from weights and map.
    BackwardData,
    /// The weights, from image and map.
    BackwardFilter,
}

/// The same of each tensor of a convolution.
#[derive(Debug, Clone, Copy, Default)]
pub struct Of<T> {
    /// What the window moves over.
    pub image: T,
    /// What it gives at each place.
    pub map: T,
    pub weight: T,
}

impl<T: Copy> Of<T> {
    /// Of the two tensors that are read, and of the result, in cuDNN's order.
    pub fn order(&self, primitive: Primitive) -> [T; 3] {
        let Of { image, map, weight } = *self;
        match primitive {
            Primitive::Forward => [image, weight, map],
            Primitive::BackwardData => [weight, map, image],
            Primitive::BackwardFilter => [image, map, weight],
        }
    }
}

/// A convolution as cuDNN sees it: channels last, in 16 bits unless in f32 or tf32.
pub struct Geometry {
    pub precision: Precision,
    pub window: Window,
    pub batch: usize,
    /// Height, width and channels.
    pub image: [usize; 3],
    pub map: [usize; 3],
}

/// An algorithm that can do a convolution.
#[derive(Debug, Clone, Copy)]
pub struct Algorithm {
    pub number: c_int,
    pub math: c_int,
}

/// Functions of the library.
struct Functions {
    error: unsafe extern "C" fn(Status) -> *const c_char,
    version: unsafe extern "C" fn() -> usize,
    set_stream: unsafe extern "C" fn(Object, *mut c_void) -> Status,
    create_tensor: Create,
    create_filter: Create,
    create_convolution: Create,
    destroy_tensor: Destroy,
    destroy_filter: Destroy,
    destroy_convolution: Destroy,
    /// Format, type; batch, channels, height, width.
    set_tensor: unsafe extern "C" fn(Object, c_int, c_int, c_int, c_int, c_int, c_int) -> Status,
    /// Type, format; the map's channels, the image's, height, width.
    set_filter: unsafe extern "C" fn(Object, c_int, c_int, c_int, c_int, c_int, c_int) -> Status,
    /// Padding, strides and dilations along height and width; mode, type of the sums.
    set_convolution: unsafe extern "C" fn(Object, c_int, c_int, c_int, c_int, c_int, c_int, c_int, c_int) -> Status,
    set_math: unsafe extern "C" fn(Object, c_int) -> Status,
    expect: [Expect; 3],
    find: [Find; 3],
    run: [Run; 3],
}

/// cuDNN on a stream.
pub struct Cudnn {
    functions: Functions,
    handle: Object,
    pub stream: Arc<CudaStream>,
    workspace: CudaSlice<u8>,
}

/// A function of the library.
///
/// # Safety
/// `T` must be its type.
unsafe fn function<T: Copy>(library: &Library, name: &str) -> Result<T, String> {
    // SAFETY: as the caller says.
    unsafe { library.get::<T>(name) }.map(|symbol| *symbol).map_err(|error| error.to_string())
}

/// The first of the libraries that can be opened; why the last cannot.
fn open() -> Result<Library, String> {
    let named = std::env::var("RARUNET_CUDNN_LIBRARY").ok();
    let mut reason = String::new();
    for name in named.as_deref().map_or(NAMES.to_vec(), |name| vec![name]) {
        // SAFETY: this runs the library's initialisation, which is its own business.
        match unsafe { Library::new(name) } {
            Ok(library) => return Ok(library),
            Err(error) => {
                let source = std::error::Error::source(&error).map_or(String::new(), |source| format!(": {source}"));
                reason = format!("{name}: {error}{source}");
            }
        }
    }
    Err(reason)
}

impl Functions {
    fn load(library: &Library) -> Result<Self, String> {
        // SAFETY: the types are those of cuDNN 9's headers.
        unsafe {
            Ok(Functions {
                error: function(library, "cudnnGetErrorString")?,
                version: function(library, "cudnnGetVersion")?,
                set_stream: function(library, "cudnnSetStream")?,
                create_tensor: function(library, "cudnnCreateTensorDescriptor")?,
                create_filter: function(library, "cudnnCreateFilterDescriptor")?,
                create_convolution: function(library, "cudnnCreateConvolutionDescriptor")?,
                destroy_tensor: function(library, "cudnnDestroyTensorDescriptor")?,
                destroy_filter: function(library, "cudnnDestroyFilterDescriptor")?,
                destroy_convolution: function(library, "cudnnDestroyConvolutionDescriptor")?,
                set_tensor: function(library, "cudnnSetTensor4dDescriptor")?,
                set_filter: function(library, "cudnnSetFilter4dDescriptor")?,
                set_convolution: function(library, "cudnnSetConvolution2dDescriptor")?,
                set_math: function(library, "cudnnSetConvolutionMathType")?,
                expect: [
                    function(library, "cudnnGetConvolutionForwardAlgorithm_v7")?,
                    function(library, "cudnnGetConvolutionBackwardDataAlgorithm_v7")?,
                    function(library, "cudnnGetConvolutionBackwardFilterAlgorithm_v7")?,
                ],
                find: [
                    function(library, "cudnnFindConvolutionForwardAlgorithmEx")?,
                    function(library, "cudnnFindConvolutionBackwardDataAlgorithmEx")?,
                    function(library, "cudnnFindConvolutionBackwardFilterAlgorithmEx")?,
                ],
                run: [
                    function(library, "cudnnConvolutionForward")?,
                    function(library, "cudnnConvolutionBackwardData")?,
                    function(library, "cudnnConvolutionBackwardFilter")?,
                ],
            })
        }
    }

    fn check(&self, what: &str, status: Status) -> Result<(), String> {
        if status == SUCCESS {
            return Ok(());
        }
        // SAFETY: cuDNN has a text for every number.
        let text = unsafe { CStr::from_ptr((self.error)(status)) };
        Err(format!("{what}: {} ({status})", text.to_string_lossy()))
    }
}

impl Cudnn {
    /// Opens the library; why not, if it is not there or does not work.
    pub fn open(stream: &Arc<CudaStream>) -> Result<Self, String> {
        let library = open()?;
        let functions = Functions::load(&library)?;
        // SAFETY: the type is that of cuDNN 9's headers.
        let create: Create = unsafe { function(&library, "cudnnCreate")? };
        std::mem::forget(library); // open for as long as the process lives
        stream.context().bind_to_thread().map_err(|error| error.to_string())?;
        let mut handle = std::ptr::null_mut();
        // SAFETY: cuDNN writes the handle; the stream lives as long as this does.
        functions.check("cudnnCreate", unsafe { create(&mut handle) })?;
        // SAFETY: the handle was made above, and the stream is of the current context.
        functions.check("cudnnSetStream", unsafe { (functions.set_stream)(handle, stream.cu_stream().cast()) })?;
        let workspace = stream.alloc_zeros(WORKSPACE).map_err(|error| format!("cuDNN's workspace: {error}"))?;
        Ok(Cudnn { functions, handle, stream: stream.clone(), workspace })
    }

    /// As cuDNN counts: 91002 is 9.10.2.
    pub fn version(&self) -> usize {
        // SAFETY: it takes nothing and returns a number.
        unsafe { (self.functions.version)() }
    }

    fn workspace(&self) -> *mut c_void {
        self.workspace.device_ptr(&self.stream).0 as *mut c_void
    }

    /// Makes a convolution's descriptors.
    pub fn convolution(&self, geometry: &Geometry) -> Result<Convolution<'_>, String> {
        let functions = &self.functions;
        let null = std::ptr::null_mut();
        let mut made =
            Convolution { cudnn: self, tensors: Of { image: null, map: null, weight: null }, convolution: null };
        let Geometry { precision, window, batch, image, map } = geometry;
        let data = match precision.element(Storage::Reduced) {
            Element::F32 => DATA_FLOAT,
            Element::F16 => DATA_HALF,
            Element::Bf16 => DATA_BFLOAT16,
            Element::Bits => unreachable!("activations are numbers"),
        };
        let int = |size: usize| c_int::try_from(size).expect("sizes are small");
        let [height, width] = [1, 2].map(|axis| int(window.kernel[axis]));
        let [pad_height, pad_width] = [1, 2].map(|axis| int(window.padding[axis]));
        let [stride_height, stride_width] = [1, 2].map(|axis| int(window.stride[axis]));
        // SAFETY: cuDNN writes each descriptor, and reads numbers in the order of its headers.
        unsafe {
            for (descriptor, [height, width, channels]) in
                [(&mut made.tensors.image, image), (&mut made.tensors.map, map)]
            {
                functions.check("cudnnCreateTensorDescriptor", (functions.create_tensor)(descriptor))?;
                let [batch, channels, height, width] = [*batch, *channels, *height, *width].map(int);
                let status = (functions.set_tensor)(*descriptor, TENSOR_NHWC, data, batch, channels, height, width);
                functions.check("cudnnSetTensor4dDescriptor", status)?;
            }
            functions.check("cudnnCreateFilterDescriptor", (functions.create_filter)(&mut made.tensors.weight))?;
            let (outputs, inputs) = (int(map[2]), int(image[2]));
            let status = (functions.set_filter)(made.tensors.weight, data, TENSOR_NHWC, outputs, inputs, height, width);
            functions.check("cudnnSetFilter4dDescriptor", status)?;
            let status = (functions.create_convolution)(&mut made.convolution);
            functions.check("cudnnCreateConvolutionDescriptor", status)?;
            let status = (functions.set_convolution)(
                made.convolution,
                pad_height,
                pad_width,
                stride_height,
                stride_width,
                1,
                1,
                CROSS_CORRELATION,
                DATA_FLOAT,
            );
            functions.check("cudnnSetConvolution2dDescriptor", status)?;
        }
        made.set_math(if precision.rounds_factors() { TENSOR_OP_MATH } else { FMA_MATH })?;
        Ok(made)
    }
}

/// A convolution's descriptors.
pub struct Convolution<'a> {
    cudnn: &'a Cudnn,
    tensors: Of<Object>,
    convolution: Object,
}

impl Convolution<'_> {
    fn set_math(&self, math: c_int) -> Result<(), String> {
        let functions = &self.cudnn.functions;
        // SAFETY: the descriptor was made by cuDNN.
        functions.check("cudnnSetConvolutionMathType", unsafe { (functions.set_math)(self.convolution, math) })
    }

    /// The algorithms that work within the workspace, those first that cuDNN expects to be the fastest; none is run.
    pub fn expected(&self, primitive: Primitive) -> Result<Vec<Algorithm>, String> {
        let Cudnn { functions, handle, .. } = self.cudnn;
        let [first, second, result] = self.tensors.order(primitive);
        let mut found = [Performance::default(); MOST_ALGORITHMS];
        let mut count = 0;
        // SAFETY: the descriptors were made by cuDNN; there is room for so many algorithms.
        let status = unsafe {
            functions.expect[primitive as usize](
                *handle,
                first,
                second,
                self.convolution,
                result,
                MOST_ALGORITHMS as c_int,
                &mut count,
                found.as_mut_ptr(),
            )
        };
        functions.check("cudnnGetConvolution...Algorithm_v7", status)?;
        Ok(working(&found, count).iter().map(Performance::algorithm).collect())
    }

    /// The algorithms that work within the workspace, the fastest first, as cuDNN times them. They overwrite the result.
    ///
    /// # Safety
    /// At the addresses there must be tensors of the descriptors' sizes.
    pub unsafe fn find(&self, primitive: Primitive, addresses: Of<u64>) -> Result<Vec<Algorithm>, String> {
        let Cudnn { functions, handle, .. } = self.cudnn;
        let [first, second, result] = self.tensors.order(primitive);
        let [a, b, out] = addresses.order(primitive).map(|address| address as *mut c_void);
        let mut found = [Performance::default(); MOST_ALGORITHMS];
        let mut count = 0;
        // SAFETY: the tensors are there, as the caller says; there is room for so many algorithms.
        let status = unsafe {
            functions.find[primitive as usize](
                *handle,
                first,
                a,
                second,
                b,
                self.convolution,
                result,
                out,
                MOST_ALGORITHMS as c_int,
                &mut count,
                found.as_mut_ptr(),
                self.cudnn.workspace(),
                WORKSPACE,
            )
        };
        functions.check("cudnnFindConvolution...AlgorithmEx", status)?;
        let mut working = working(&found, count);
        working.sort_by(|a, b| a.milliseconds.total_cmp(&b.milliseconds));
        Ok(working.iter().map(Performance::algorithm).collect())
    }

    /// Computes the result.
    ///
    /// # Safety
    /// At the addresses there must be tensors of the descriptors' sizes.
    pub unsafe fn run(&self, primitive: Primitive, algorithm: Algorithm, addresses: Of<u64>) -> Result<(), String> {
        self.set_math(algorithm.math)?;
        let Cudnn { functions, handle, .. } = self.cudnn;
        let [first, second, result] = self.tensors.order(primitive);
        let [a, b, out] = addresses.order(primitive).map(|address| address as *mut c_void);
        let [one, zero] = [&1f32, &0f32].map(|factor| std::ptr::from_ref(factor).cast());
        // SAFETY: the tensors are there, as the caller says; factors are f32 for such sums.
        let status = unsafe {
            functions.run[primitive as usize](
                *handle,
                one,
                first,
                a,
                second,
                b,
                self.convolution,
                algorithm.number,
                self.cudnn.workspace(),
                WORKSPACE,
                zero,
                result,
                out,
            )
        };
        functions.check("cudnnConvolution...", status)
    }
}

impl Drop for Convolution<'_> {
    fn drop(&mut self) {
        let functions = &self.cudnn.functions;
        let Of { image, map, weight } = self.tensors;
        let destroys = [functions.destroy_tensor, functions.destroy_tensor, functions.destroy_filter];
        let all = [image, map, weight].into_iter().zip(destroys);
        for (object, destroy) in all.chain([(self.convolution, functions.destroy_convolution)]) {
            if !object.is_null() {
                // SAFETY: cuDNN made it, and nobody uses it any more.
                unsafe { destroy(object) };
            }
        }
    }
}
