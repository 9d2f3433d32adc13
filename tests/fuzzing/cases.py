"""Which calls are made.

Each function makes a case by choices among lists. Hypothesis chooses in CI, and shrinks what fails. Plain random
choices, which are a hundred times as fast, make the long row of cases of `numbered_case`.
"""

import functools
import random
from dataclasses import dataclass, field

from hypothesis import strategies as st


@dataclass(frozen=True)
class Case:
    """One call.

    Attributes
    ----------
    call : str
        "fit", "pretrain", or a method of a fitted estimator.
    X : str
        Expression of the input.
    parameters : dict of str to str
        Expressions of what differs from the quick estimator of `QUICK`.
    odd : bool
        Whether X may be at fault, and not the parameters alone.
    fitted : str, default=""
        Which of `FITTED` the call is made on; "" is an estimator that was not fitted.
    """

    call: str
    X: str
    parameters: dict[str, str] = field(default_factory=dict)
    odd: bool = True
    fitted: str = ""


QUICK = {
    "n_clusters": "3",
    "backbone": "BACKBONE",
    "layer": "'conv_in'",
    "timestep": "50",
    "pooling": "2",
    "criterion": "'scott'",
    "n_draws": "1",
    "n_components": "8",
    "init": "'k-means++'",
    "n_init": "1",
    "hidden_size": "16",
    "max_epochs": "2",
    "warmup_epochs": "1",
    "random_state": "0",
}
"""An estimator that is fitted in a twentieth of a second."""

AUTO = {"backbone": "Pretraining(**QUICK_PRETRAIN)"}

FITTED = {
    "images": ("images(16, 8, 8)", {}),
    "floats": ("images(16, 8, 8) / 255", {"value_range": "(0, 1)"}),
    "flags": ("images(16, 8, 8) > 127", {}),
    "color": ("images(16, 8, 8, 3)", {}),
    "table": ("images(16, 64) / 7", {}),
    "frame": ("columns(images(16, 64))", {}),
    "rows": ("images(16, 64)", {"image_shape": "(8, 8)"}),
    "files": ("folder(many(12))", {}),
    "color files": ("folder(many(12, '.bmp', 'RGB'))", {}),
    "trained backbone": ("images(16, 8, 8)", {"train_backbone": "True"}),
}
"""Input and parameters of the fits that later calls start from."""


def _words(*texts):
    """The words of some texts: most expressions have no spaces."""
    return [word for text in texts for word in text.split()]


ODD_NUMBERS = _words(
    "0 -1 1 2 3 8 0.5 2.0 -0.5 -0.0 True False 1+1j 1e17 1e38 1e308 1e-45 1e-308 5e-324 float('nan') float('inf')",
    "-float('inf') np.inf np.True_ np.int8(3) np.uint8(3) np.int32(1) np.int64(3) np.uint64(2) np.float16(0.5)",
    "np.float32(0.5) np.float32('nan') np.float64(2) np.longdouble(2) np.complex64(2) np.array(2) np.array(0.5)",
    "np.array([2]) torch.tensor(2) torch.tensor(0.5) Fraction(1,2) Fraction(4,2) Decimal('0.5') Decimal('2') 2**63",
    "2**64 10**30 10**400 10**5000 -(2**63) -(10**30) np.uint64(2**63) np.int64(-(2**63))",
)

ODD_OBJECTS = [
    *_words(
        "None ... '' 'nonsense' 'residual' '\\0' 'a'*5000 'cpu' '8' b'bytes' bytearray(3) () [] {} set() [None] [[]]",
        "(1,2,3,4,5) {'a':1} object() NoRepr() [NoRepr()] int np.int64 range(3) slice(1) np.array([]) np.zeros((3,2))",
        "np.array(['a']) np.array(None) torch.tensor([1.,2.]) pd.NA pd.NaT pd.Series([1,2]) np.datetime64('2020')",
        "{1,2} {1:2}.keys() [1,'a'] ['a',None] [True] [1.5] [-1] (0,) [10**30] [2**63] [float('nan')] nested(50)",
        "[0,0] [50,50] (2,2) (8,8) [np.int64(2)] np.array([2,1]) np.array([[1]]) range(0) (0.0,1.0) NETWORK tmp",
        "Path('nowhere') datetime(2020,1,1) np.ma.masked recursive() contextlib list(range(9999)) sparse.eye(3)",
        "Image.new('L',(8,8)) np.zeros(3,'f4,i4') io.StringIO('a') np.random.RandomState(0) Shaped() Rows([1])",
        "np.random.default_rng(0) joblib.Memory(None) torch.nn.Linear(2,2) functools.partial(int) iter([1,2])",
    ),
    "lambda *a: 0",
]

MUCH = ["10**6", "2**31", "2**32"]
"""Integers that are legal in parameters which say how much is to be done."""

WORK = {"n_init", "n_draws", "search_draws", "max_epochs", "epochs", "hidden_size", "layers_per_block", "channels"}
"""Those parameters."""

OWN = {
    "n_clusters": _words("1 2 3 5 16 17 np.int64(2)"),
    "backbone": _words(
        "Pretraining(**QUICK_PRETRAIN) Pretraining BACKBONE NETWORK",
        "backbone() str(backbone()) network() 'nonsense' Path('nowhere') '/dev/null' '/dev'",
    ),
    "image_shape": _words(
        "(8,8) [8,8] (1,8,8) (8,8,1) (4,16) (16,4) (3,8,8) (8,8,3) (2,8,4) (64,1) (0,8) (-8,-8) (8,) (8.0,8.0) (8,8,8)",
        "np.array([8,8]) (np.int8(8),8) (True,64) ('8','8') (10**6,10**6) (2**31,2**33) (3,3,3) (64,)",
    ),
    "channel_axis": _words("1 -1 0 2 3 -3 np.int64(1) True"),
    "value_range": _words(
        "(0,255) [0,255] (0,1) (-1,1) (0,256) (-10,300) (255,0) (0,0) (0,) (0,1,2) (None,1) ('0','1') (0,np.inf) '01'",
        "np.array([0,255]) (0,1e308) (-1.7e308,1.7e308) (0,5e-324) (0,10**400) (0,1+1j) (float('nan'),1) ('a','b')",
        "(Fraction(0),Fraction(255)) (np.float32(0),np.float32(255)) (False,True) {0:1,255:1} torch.tensor([0,255])",
    ),
    "layer": _words(
        "'conv_in' ['conv_in'] ('conv_in','down_blocks.0') ['down_blocks.0','up_blocks.0'] ['conv_in','conv_in'] None",
        "'mid_block' 'nonsense' ['conv_in','nonsense'] 'conv_out' '' 'time_proj' 'down_blocks' 'conv_act' {'conv_in'}",
        "np.array(['conv_in']) np.str_('conv_in') pd.Series(['conv_in']) 'time_embedding' [['conv_in']]",
        "'time_embedding.linear_1'",
    ),
    "timestep": _words(
        "0 1 50 400 401 999 1000 -1 [50] (50,100) [50,50] range(0,100,40) np.array([10,50]) np.int64(50) [np.int32(5)]",
        "None [50,None] [50,1000] [0.5] [True] np.array(50) np.array([[50]]) pd.Series([50]) {50} 50.0 '50'",
    ),
    "pooling": _words(
        "1 2 4 8 9 0 -1 [1] (1,2) [2,2] np.array([1,2]) np.int64(2) [1,100] [0,1] None [-1] np.array(2) 2.0 [2.0] '2'",
        "[True] range(1,3) {1,2}",
    ),
    "search": _words("'grid' 'halving' 'Grid' np.str_('grid')"),
    "criterion": [
        *_words("'consensus' 'relative_cut' 'normalized_cut' 'scott' 'silhouette' criterion_error float NoRepr"),
        *[
            f"lambda features, labels: {value}"
            for value in _words(
                "0.0 float(len(labels)) float('nan') float('inf') None 'a' features np.array([1.0]) np.float32(1) 1+1j",
                "10**400 True Fraction(1,2) Decimal('2') torch.tensor(1.0) NoRepr() labels.dtype features[0,0]",
            )
        ],
        "lambda features: 0.0",
    ],
    "max_search_samples": _words("2 3 5 16 1000"),
    "search_draws": _words("1 2 3 np.int64(2)"),
    "n_draws": _words("1 2 5 np.int64(2)"),
    "shift": _words("0 1 7 8 100 np.int64(1)"),
    "n_components": _words("1 2 16 1000 np.int64(2)"),
    "n_neighbors": _words("1 2 15 16 1000 np.int64(2)"),
    "neighbors_algorithm": _words("'exact' 'Exact' 'brute'"),
    "init": _words(
        "'graph' 'k-means++' 'random' np.zeros((3,8)) np.ones((3,8)) np.eye(3,8) np.zeros((3,7)) np.zeros((2,8))",
        "np.zeros(3) np.zeros((3,8,1)) np.zeros(()) np.zeros((0,8)) np.zeros((3,0)) [[0]*8]*3 np.full((3,8),np.nan)",
        "np.full((3,8),1e300) np.full((3,8),'a') np.zeros((3,8),bool) np.eye(3,8,dtype=complex) torch.eye(3,8)",
        "np.eye(3,8,dtype=np.float16) sparse.eye(3,8) pd.DataFrame(np.eye(3,8)) np.eye(3,8,dtype=object)",
        "[[1],[2,3],[4]] np.ma.masked_equal(np.eye(3,8),0)",
    ),
    "n_init": _words("1 2 3 np.int64(2)"),
    "head": _words("'residual' 'direct' None 'linear'"),
    "train_backbone": _words("True False np.True_ 1 'True'"),
    "alpha": _words("0 1 0.1 100 1e6 1e30 1e300 np.float32(1) np.int64(1)"),
    "beta": _words("0 1 0.1 100 1e6 1e30 1e300 np.float32(1)"),
    "gamma": _words("0 1 0.1 100 1e6 1e30 1e300 np.float32(1)"),
    "denoising_weight": _words("0 1 0.1 100 1e6 1e30 1e300 np.float32(1)"),
    "nu": _words("1 0.1 10 1e6 1e-6 1e-30 1e-300 1e300 np.float32(1)"),
    "hidden_size": _words("1 8 64 np.int64(8)"),
    "max_epochs": _words("1 2 5 np.int64(2)"),
    "warmup_epochs": _words("0 1 2 100 np.int64(1)"),
    "batch_size": _words("1 5 16 17 np.int64(5)"),
    "learning_rate": _words("1e-3 1.0 1e3 1e10 1e20 1e38 1e-30 np.float32(1e-3) np.float64(1e-3)"),
    "backbone_learning_rate": _words("1e-4 1.0 1e20 1e38 1e-30 np.float32(1e-3)"),
    "tol": _words("0 0.5 1 2 np.float32(0.1)"),
    "update_interval": _words("1 2 100 np.int64(2)"),
    "n_snapshots": _words("0 1 3 1000 np.int64(2)"),
    "memory": _words(
        "tmp/'cache' str(tmp/'cache') None joblib.Memory(None) joblib.Memory(str(tmp/'cache'),verbose=0) '\\0'",
        "'a'*5000 str(tmp/('a'*300)) '/dev/null' '/dev/null/x' '/proc/nonsense' '' '.'",
    ),
    "inference_batch_size": _words("1 5 16 1000 np.int64(5)"),
    "precision": _words("'fp32' 'bf16' 'fp16' 'float32' torch.float32"),
    "device": [
        *_words("'cpu' torch.device('cpu') 'cpu:0' 'meta' torch.device('meta') 'cuda' 'cuda:99' 'cuda:-1' 'nonsense'"),
        *_words("'' 'mps' 'xpu' 99 'cpu:1' 'vulkan' 'hpu' 'CPU' 'cuda:' 'mkldnn' 'lazy' 'ipu' 'privateuseone'"),
        "'cpu '",
    ],
    "n_jobs": _words("1 0 np.int64(1) -(10**6) 1.0 True"),
    "random_state": _words(
        "0 1 2**32-1 2**32 -1 np.int64(1) np.random.RandomState(0) np.random.default_rng(0) None np.random True"
    ),
    "verbose": _words("False True 1 0 -1 2 np.True_ np.array([True,False])"),
}
"""What each parameter of the estimator takes, and what looks like it."""

OWN_OF_PRETRAIN = {
    **{name: OWN[name] for name in ("image_shape", "channel_axis", "value_range", "device", "random_state", "verbose")},
    "folder": _words(
        "tmp/'new' str(tmp/'new') folder() folder(content('a.txt')) tmp/('a'*300) '\\0' 'a'*5000 '/dev/null'",
        "'/dev/null/x' '/proc/nonsense' '' '.' pretrained(True) pretrained(False)",
    ),
    "epochs": _words("1 2 np.int64(1)"),
    "report": _words("None (lambda*a:False) (lambda*a:True) (lambda*a:a[0]==2) 3 'report' np.zeros(3)"),
    "max_minutes": _words("None 1e-6 1 1e300 np.float32(0.1) np.int64(1) '1'"),
    "batch_size": _words("1 5 16 1000 np.int64(5)"),
    "learning_rate": _words("1e-3 1.0 1e10 1e38 1e308 1e-30 np.float32(1e-3)"),
    "architecture": _words("'unet' 'transformer' 'dit' None ['unet'] np.str_('transformer')"),
    "channels": _words(
        "(8,) [8] (8,8) (32,) np.array([8]) None (1,) (7,) (8,8,8) (3,5) 8 (8.0,) (0,) (-8,) () (True,) ('8',) (8,)*5",
        "(8,)*40 (10**9,) (2**31,) (2**63,) (10**30,) (np.int64(8),) torch.tensor([8]) pd.Series([8]) {8} range(8,9)",
        "[[8]] [None]",
    ),
    "layers_per_block": _words("1 2 None np.int64(1) 10**9"),
    "patch_size": _words("1 2 3 8 9 None np.int64(2)"),
    "max_timestep": _words("0 1 400 999 1000 -1 np.int64(400)"),
    "standardize": _words("True False None np.True_ 1 'True'"),
    "ema_decay": _words("0 0.5 0.999 1 1.5 -1 np.float32(0.5)"),
    "precision": _words("'fp32' 'auto' 'bf16' 'fp16'"),
    "dtype": _words("'float32' 'bfloat16' 'float64' np.float32 torch.float32"),
    "checkpoint_seconds": _words("0 60 0.5 1e308 -1"),
}
"""What each parameter of `pretrain` takes, and what looks like it."""

TOO_LONG = {
    "epochs": ["None"],
    "n_jobs": _words("-1 2 3 8 np.int8(3) np.uint8(3) np.int64(3) np.uint64(2)"),  # processes, which start slowly
}
"""Values that are legal and cost seconds."""


def _value(choose, name, own):
    """An expression for one parameter: of its own, or an odd one."""
    odd = choose([ODD_NUMBERS, ODD_NUMBERS, ODD_OBJECTS, *([] if name in WORK else [MUCH])])
    expression = choose(choose([own[name], odd, odd]))
    return own[name][0] if expression in TOO_LONG.get(name, ()) else expression


def _some(choose, names, most):
    """Several names, each once."""
    return list(dict.fromkeys(choose(list(names)) for _ in range(most)))


PLAIN_X = [
    *["images(16, 8, 8)"] * 6,
    *_words("images(16,64) images(16,64)/7 images(16,8,8,3) images(16,1,8,8) columns(images(16,64))"),
    "torch.tensor(images(16, 8, 8))",
]


def parameter_case(choose):
    """Calls of `fit` with some parameters off their defaults, on plain images."""
    parameters = {name: _value(choose, name, OWN) for name in _some(choose, OWN, choose([1, 1, 2, 2, 3]))}
    # A criterion can only be tried on features, after pretraining.
    can_train = not {"backbone", "criterion"} & set(parameters)
    auto = AUTO if can_train and choose([False, False, False, True]) else {}
    fitted = choose([*[""] * 7, "images"])
    return Case("fit", choose(PLAIN_X) if not fitted else "images(16, 8, 8)", {**auto, **parameters}, False, fitted)


SHAPES = [
    *[(16, 8, 8, 3), (16, 1, 8, 8), (16, 8, 8, 4), (40, 8, 8), (16, 9, 5), (16, 3, 8, 8), (12, 2, 2), (2, 8, 8)],
    *[(), (0,), (1,), (16,), (64,), (0, 0), (0, 64), (16, 0), (1, 64), (2, 64), (16, 1), (16, 2), (16, 3), (3, 5)],
    *[(0, 8, 8), (16, 0, 8), (16, 8, 0), (1, 8, 8), (3, 8, 8), (8, 8, 3), (8, 8, 4), (8, 8, 1), (16, 1, 1), (16, 1, 8)],
    *[(16, 8, 3), (16, 40, 3), (16, 1, 1, 1), (16, 4, 4, 4), (16, 5, 8, 8), (16, 2, 8, 8), (16, 8, 8, 2), (1, 8, 8, 3)],
    *[(0, 8, 8, 3), (16, 0, 8, 8), (16, 8, 8, 0), (16, 1, 8, 8, 1), (1, 16, 8, 8, 1), (2, 2, 2, 2, 2), (16, 7, 7, 7)],
]

CONTENTS = [
    *_words(
        "{}/255 {}*257. {}-128. -{}*1. {}*0 {}*0+255 {}*1e17 {}*1e300 {}*1e-320 ({}>127) ({}>127)*1 {}/255*2-1",
        "{}*0+1e17 {}*0.+1e308 with_value({},np.nan) with_value({},np.inf) with_value({},-np.inf) with_value({},1e308)",
        "with_value({},256) np.repeat({},2,0) np.repeat({}[:1],16,0) np.concatenate([{},{}]) {}[:3].repeat(6,0)",
    ),
]

DTYPES = [
    *[
        f"({{}}).astype('{kind}')"
        for kind in _words(
            "bool int8 int16 int32 int64 uint8 uint16 uint32 uint64 float16 float32 float64 longdouble complex64",
            "complex128 clongdouble object str S5 >f4 >i2 >u2 <f8 >f8 >i8 datetime64[s] timedelta64[s] V1",
        )
    ],
]

LAYOUTS = [
    *_words(
        "({})[::-1] np.asfortranarray({}) read_only({}) memory_map({}) ({}).T ({})[...,::-1] np.ma.masked_array({})",
        "np.ma.masked_equal({},40) np.ma.masked_less({},-1) np.asmatrix({}) ({}).view(np.recarray) ({})[::2]",
        "({})[None] ({})[...,None] ({})[0] np.broadcast_to({},({}).shape)",
        "np.lib.stride_tricks.sliding_window_view({},4,0)",
    ),
]

CONTAINERS = [
    *_words(
        "list({}) tuple({}) ({}).tolist() [({}).tolist()] deque({}) iter({}) set(map(bytes,{})) dict(enumerate({}))",
        "Rows({}) AsArray({}) memoryview({}) zip({},{}) {{'images':{}}} [*{},None] [*{},'a.png'] [*{},({})[0][:1]]",
        "pd.Series(list({})) columns({}) columns({},int) columns({},mixed) columns({}).astype('Int64') bytes({})",
        "pd.DataFrame(({}).reshape(len({}),-1),index=[0]*len({})) columns({}).astype('category') map(np.asarray,{})",
        "columns({}).assign(a='text') columns({}).assign(b=None) columns({}).astype('Float32')",
        "pd.DataFrame(list({})) str({}) np.array(list({}),object) np.array([{}],object) [[[one]]for(one)in({})]",
        "[{}]*3 columns({}).iloc[:,::-1]",
        "torch.tensor({}) torch.tensor({}).float() torch.tensor({}).bfloat16() torch.tensor({}).half()",
        "torch.tensor({})[:,::2] torch.tensor({}).float().requires_grad_() torch.tensor({}).to_sparse()",
        "torch.tensor({}).to('meta') torch.tensor({})*1j [torch.tensor(one)for(one)in({})] (one**1for(one)in({}))",
        "list(torch.tensor({}).float().requires_grad_()) torch.utils.data.TensorDataset(torch.tensor({}))",
        "[Image.fromarray(one)for(one)in({})] (Image.fromarray(one)for(one)in({})) np.nditer({}) enumerate({})",
        "torch.utils.data.DataLoader(torch.tensor({})) torch.nested.nested_tensor(list(torch.tensor({})))",
        "torch.quantize_per_tensor(torch.tensor({}).float(),1.,0,torch.quint8) reversed({}) ({},{})",
        "sparse.csr_matrix({}) sparse.csr_array({}) sparse.coo_array({}) sparse.lil_matrix({}) sparse.dia_array({})",
    ),
]

MODES = _words("L 1 P RGB RGBA CMYK YCbCr HSV LAB I F LA PA RGBX La RGBa I;16 I;16B")

OTHER_X = [
    *ODD_OBJECTS,
    *_words(
        "0 3.5 2**63 float('nan') b'' Shaped() Shaped [None]*16 [[1,2],[3]] [images(8,8),images(4,4)] [[1,2],[3,'a']]",
        "[images(8,8),None] pd.Series(['a.png',None]) pd.Series([None]*3) pd.Series([1.5]*16) np.array(['a']*16) ['']",
        "np.zeros(16,'datetime64[s]') np.zeros(16,'f4,i4') pd.DataFrame({'a':['x','y']}) pd.DataFrame() [b'a']*3",
        "Image.new('L',(8,8)) Image.new('RGB',(8,8)) io.BytesIO(b'abc') open(os.devnull) memoryview(b'abc') range(16)",
        "Path('nowhere') '/dev/null' '/dev/zero' '/proc/self/mem' '/dev/null/x' '~' '.' pd.DataFrame({'a':[]})",
        "['nowhere.png'] [Path('nowhere.png')]*3 ('a','b') {'a','b'} iter(['a']) ['\\0'] ['a'*5000] ['a.png',1]",
        "['/dev/zero'] ['/dev/null'] [Path('/dev/zero')]*16 ['.'] 'http://localhost/a.png' ['http://localhost/a.png']",
        "nested(5) nested(100) nested(5000) [nested(40)]*2 [recursive()]*3 10**400 [10**400]*4 [[10**400]*4]*4",
        "[[1e308*10]*4]*4 [[Fraction(1,2)]*4]*4 [[Decimal('0.5')]*4]*4 [[NoRepr()]*4]*4 [['1']*4]*4 [[True,False]*2]*4",
        "[[datetime(2020,1,1)]*4]*4 [[1+1j]*4]*4 [[2**63]*4]*4 [[2**64]*4]*4 np.full((16,8),2**64) [set()]*4 [[{}]]",
        "pil('L')+pil('RGB') pil('L')+pil('L',3,(9,8)) pil('L')+[None] iter(pil('L')) tuple(pil('L')) [range(4)]*4",
        "np.array(pil('L'),object) {'a':pil('L')} [pil('L')] pil('L',1) pil('L',0) pil('L',12,(1,1)) [1,'a.png']",
        "pd.Series(pil('L')) pil('RGB',12,(300,1))",
    ),
    *[f"pil({mode!r})" for mode in MODES],
]


def _odd_x(choose):
    """An expression of odd input that is no file."""
    if choose([False, False, True]):
        return choose(OTHER_X)
    shape = choose([(16, 8, 8), (16, 8, 8), (16, 8, 8, 3), (16, 64), *[choose(SHAPES)] * 3])
    expression = f"images({', '.join(map(str, shape))})"
    odd = [choose([CONTENTS, DTYPES, LAYOUTS, CONTAINERS]) for _ in range(choose([1, 1, 2]))]
    for templates in (CONTENTS, DTYPES, LAYOUTS, CONTAINERS):
        template = choose(templates) if templates in odd else "{}"
        expression = template.format(*[expression] * template.count("{}"))
    return expression


ARRAY_PARAMETERS = {
    "value_range": _words("(0,255) (0,255) (0,255) (0,1) (-1,1) (-1e300,1e300)"),
    "image_shape": _words("(8,8) (3,8,8) (8,8,3) (4,16)"),
    "channel_axis": _words("1 -1"),
}


def _layout(choose, values):
    """Parameters that say what X means, in half of the cases."""
    names = choose([[], [], ["value_range"], ["image_shape"], ["channel_axis"], ["value_range", "image_shape"]])
    return {name: choose(values[name]) for name in names}


def input_case(choose):
    """Calls of `fit` and `pretrain` with odd input."""
    parameters = _layout(choose, ARRAY_PARAMETERS)
    call = choose([*["fit"] * 5, "fit_transform", "pretrain"])
    auto = AUTO if call != "pretrain" and choose([False, False, False, True]) else {}
    fitted = choose([*[""] * 6, "images", "frame"]) if call == "fit" else ""
    return Case(call, _odd_x(choose), {**auto, **parameters}, True, fitted)


SUFFIXES = _words(
    ".png .jpg .jpeg .tif .tiff .gif .bmp .webp .ppm .pgm .pbm .pnm .jfif .jpe .jp2 .avif .tga .ico .dib .PNG .Jpg",
    ".apng .pcx .sgi .im .dds .icns .eps .pdf .xbm .msp .spi .txt .npy .mpo .j2k",
)

FILE_NAMES = [
    *_words(
        "30 .hidden ._30 sub/30 a/b/c/30 .git/30 __MACOSX/._30 .ipynb_checkpoints/30 @eaDir/30 Thumbs - ü %s{0} 00"
    ),
    *["new\nline", "\udcff", "sub\udcff/30", "space in it", "'quoted\"", "a" * 200, " "],
]

GARBAGE = [
    *_words(
        r"b'' b'\0' b'garbage'*100 b'\x89PNG\r\n\x1a\n' b'\x89PNG\r\n\x1a\n'+b'\0'*99 b'\xff\xd8\xff\xe0'+b'\0'*99",
        r"b'GIF89a'+b'\xff'*99 b'BM'+b'\xff'*99 b'II*\0'+b'\xff'*99 b'II*\0\x08\0\0\0'+b'\0'*99 b'MM\0*'+b'\xff'*99",
        r"b'P5\n8\n8\n255\n'+b'a'*64 b'P5\n8\n8\n255\n' b'P5\n99999999\n99999999\n255\n' b'P6\n0\n0\n255\n'",
        r"b'P5\n-8\n-8\n255\n'+b'a'*64 b'P5\n'+b'9'*5000 b'RIFF\0\0\0\0WEBPVP8\x20' b'<svg></svg>' b'%PDF-1.4'",
        r"b'PK\x03\x04' b'\0\0\1\0\1\0'+b'\xff'*99 b'SIMPLE\x20\x20='+b'\x20'*99 b'\x93NUMPY'",
        r"b'%!PS-Adobe-3.0\x20EPSF-3.0\n%%BoundingBox:\x200\x200\x208\x208\nshowpage\n'",
    ),
]


def _entry(choose):
    """One odd entry of a folder of images, as an expression."""
    suffix, mode = choose(SUFFIXES), choose(MODES)
    path = ascii(choose(FILE_NAMES) + suffix)
    size = choose(_words("(8,8) (8,8) (8,8) (9,8) (1,1) (1,400) (64,2)"))
    option = choose([*[""] * 6, *(f", orientation={tag}" for tag in (1, 3, 6, 8, 0, 9, 99)), ", pages=3"])
    templates = [
        *[f"image({path}, {mode!r}, {size}{option})"] * 6,
        f"cut({path}, {choose([0, 0.01, 0.3, 0.6, 0.95])}, {mode!r})",
        f"content({path}, {choose(GARBAGE)})",
        f"many(6, {suffix!r}, {mode!r}, {size})",
        *[f"link({path}, {target})" for target in ("'00.png'", "'nowhere'", path, "'/dev/zero'")],
        *["link('loop', '.')", "link('above', '..')", f"fifo({path})", "deep(200)"],
    ]
    return choose(templates)


GOOD_FILES = [
    *["many(12)"] * 40,
    *[f"many(10, {suffix!r}, {mode!r})" for suffix in (".png", ".tif", ".jpg", ".gif") for mode in MODES],
    *["many(0)", "many(1)", "many(2)", "many(10, '.png', 'L', (9, 5))"] * 3,
]

FILE_FORMS = [
    *["{}"] * 20,
    *_words(
        "str({}) files_in({}) list(map(str,files_in({}))) tuple(files_in({})) np.array(list(map(str,files_in({}))))",
        "pd.Series(files_in({})) pd.Series([*map(str,files_in({})),None]) iter(files_in({})) set(files_in({}))",
        "[*files_in({}),'nowhere.png'] [*files_in({}),{}] [str({})] files_in({})[0] os.scandir({}) {}.iterdir()",
        "[*files_in({}),0] {}/'00.png' [{}/'00.png']*12 pd.Index(files_in({})) files_in({})[::-1] os.fsencode({})",
        "{{'files':files_in({})}} np.array(files_in({}),object) pd.DataFrame({{'path':files_in({})}}) bytes({})",
        "deque(files_in({}))",
        "[os.fsencode(one)for(one)in(files_in({}))] [one.open('rb')for(one)in(files_in({}))if(one.is_file())]",
    ),
]


def _files(choose):
    """An expression of image files."""
    entries = [choose(GOOD_FILES), *(_entry(choose) for _ in range(choose([0, 1, 1, 2])))]
    form = choose(FILE_FORMS)
    return form.format(*[f"folder({', '.join(entries)})"] * form.count("{}"))


FILE_PARAMETERS = {
    "image_shape": _words("(8,8) (8,8) (8,8) (8,8,1) (8,8,3) (3,8,8) (4,8,8) (5,3) (1,1) (100,1)"),
    "value_range": _words("(0,255) (0,65535) (0,4095) (0,1) (-1,1)"),
    "channel_axis": _words("1 -1"),
}


def file_case(choose):
    """Calls of `fit` and `pretrain` with files."""
    parameters = _layout(choose, FILE_PARAMETERS)
    call = choose([*["fit"] * 6, "pretrain"])
    auto = AUTO if call == "fit" and choose([False, False, True]) else {}
    return Case(call, _files(choose), {**auto, **parameters})


JSON_VALUES = _words(
    "None True False 0 -1 1 2 3 4 8 16 10**9 10**30 -(10**9) 2**63 1e308 0.5 float('nan') float('inf') '' 'nonsense'",
    "'8' '../x' 'silu' [] [1] [8] [4,4] [8,8] [None] [10**9,1] [1,10**9] [-1,-1] [8,8,8] [0] ['DownBlock2D']",
    "['Nonsense'] ['AttnDownBlock2D'] ['UpBlock2D'] [4]*9 [4]*99999 ['DownBlock2D']*99999 {} {'a':1} {'channels':1}",
    "nested(20) nested(400) [[4]] [{}] 'a'*5000 [1.5] ['4'] [True]",
)

UNET_KEYS = _words(
    "sample_size in_channels out_channels center_input_sample time_embedding_type freq_shift flip_sin_to_cos nonsense",
    "down_block_types mid_block_type up_block_types block_out_channels layers_per_block mid_block_scale_factor dropout",
    "downsample_padding downsample_type upsample_type act_fn attention_head_dim norm_num_groups attn_norm_num_groups",
    "norm_eps resnet_time_scale_shift add_attention class_embed_type num_class_embeds num_train_timesteps _class_name",
    "time_embedding_dim _diffusers_version",
)

BACKBONE_KEYS = {
    "model_index.json": _words("_class_name _diffusers_version unet scheduler vae nonsense"),
    "unet/config.json": UNET_KEYS,
    "scheduler/scheduler_config.json": _words(
        "num_train_timesteps beta_start beta_end beta_schedule trained_betas variance_type clip_sample prediction_type",
        "thresholding dynamic_thresholding_ratio clip_sample_range sample_max_value timestep_spacing steps_offset",
        "rescale_betas_zero_snr _class_name",
    ),
    "skdiec.json": _words("image_shape patch_size settings request loss steps nonsense"),
}
"""Files of a pipeline, and the keys in them."""

TEXTS = _words(
    """'' '[]' 'null' '3' 'true' '{' '{}' '[1]' 'NaN' '[' '{"a":1}' '{"unet":null}' '{"unet":[]}' '{"unet":3}' '\\0'""",
    """'['*200000 '{"a":'*200000 '\\x20'*10**6 '9'*5000 '"a"' '{"a":1}garbage' '\\ufeff{}' '{"unet":["a","b"]}'""",
)


def _change(choose, names, weights):
    """One change to a folder of a backbone, as an expression."""
    name, file = choose(list(names)), choose([*names, weights])
    key, share = choose(names[name]), choose([0, 0.001, 0.1, 0.5, 0.99])
    changes = [
        *[f"put({name!r}, {key!r}, {choose(JSON_VALUES)})"] * 12,
        *[f"drop({name!r}, {key!r})", f"text({file!r}, {choose(TEXTS)})", f"shorten({weights!r}, {share})"] * 2,
        *[f"without({file!r})", f"piped({file!r})"],
        *[f"linked({file!r}, {target!r})" for target in ("/dev/zero", "/dev/null", "nowhere")],
        *["content('extra.bin', b'a')", "content('pytorch_model.bin', b'a')", "content('a.safetensors', b'a')"],
    ]
    return choose(changes)


def _checkpoint_change(choose):
    """One change to a folder of an unfinished pretraining, as an expression."""
    changes = [
        f"shorten('training.safetensors', {choose([0, 0.001, 0.1, 0.5, 0.99])})",
        *[
            "text('training.safetensors', 'garbage')",
            "without('training.safetensors')",
            "piped('training.safetensors')",
        ],
        *["linked('training.safetensors', '/dev/zero')", "content('a.txt')", "content('skdiec.json', b'{}')"],
        *["content('unet/config.json', b'{}')", "content('.tmpabcdef', b'abc')"],
    ]
    return choose(changes)


def backbone_case(choose):
    """Calls of `fit` and `pretrain` with a changed folder of a backbone, or of a pretraining."""
    kind = choose(["backbone", "backbone", "network", "finished", "checkpoint"])
    names, weights = BACKBONE_KEYS, "unet/diffusion_pytorch_model.safetensors"
    if kind == "network":
        names, weights = {"config.json": UNET_KEYS}, "diffusion_pytorch_model.safetensors"
    changes = [
        _checkpoint_change(choose) if kind == "checkpoint" else _change(choose, names, weights)
        for _ in range(choose([1, 1, 2]))
    ]
    if kind in ("backbone", "network"):
        layer = choose([{}, {}, {}, {"layer": "None"}])
        return Case("fit", "images(12, 8, 8)", {"backbone": f"{kind}({', '.join(changes)})", **layer}, False)
    folder = f"pretrained({kind == 'finished'}, {', '.join(changes)})"
    if choose([False, True]):
        return Case("pretrain", "images(16, 8, 8)", {"folder": folder, "random_state": "0"}, False)
    backbone = f"Pretraining({folder}, **QUICK_PRETRAIN, random_state=0)"
    return Case("fit", "images(16, 8, 8)", {"backbone": backbone}, False)


def pretrain_case(choose):
    """Calls of `pretrain`, and of `fit` that pretrains."""
    names = _some(choose, OWN_OF_PRETRAIN, choose([1, 1, 2, 3]))
    parameters = {name: _value(choose, name, OWN_OF_PRETRAIN) for name in names}
    if choose([False, True]):
        return Case("pretrain", choose(PLAIN_X), parameters, False)
    parameters.pop("report", None)
    of_fit = {name: parameters.pop(name) for name in list(parameters) if name in OWN}
    settings = ", ".join(f"{name!r}: {expression}" for name, expression in parameters.items())
    backbone = f"Pretraining(**{{**QUICK_PRETRAIN, {settings}}})"
    return Case("fit", choose(PLAIN_X), {"backbone": backbone, **of_fit}, False)


def later_case(choose):
    """Calls of a fitted estimator with other input, and of one that was not fitted."""
    call, fitted = choose(["predict", "transform", "predict_proba", "score"]), choose([*[*FITTED] * 4, ""])
    kind = choose(["odd", "odd", "files", "plain"])
    X = choose([X for X, _ in FITTED.values()]) if kind == "plain" else {"odd": _odd_x, "files": _files}[kind](choose)
    return Case(call, X, fitted=fitted)


CASES = {
    "parameters": (parameter_case, 0.4),
    "inputs": (input_case, 0.2),
    "files": (file_case, 0.1),
    "backbones": (backbone_case, 0.08),
    "pretraining": (pretrain_case, 0.07),
    "later calls": (later_case, 0.15),
}
"""What makes the cases of each kind, and the share of it."""


def numbered_case(seed, number):
    """One of a row of random cases, with its kind."""
    rng = random.Random(f"{seed} {number}")
    kind = rng.choices(list(CASES), [share for _, share in CASES.values()])[0]
    return kind, CASES[kind][0](rng.choice)


_index = functools.cache(lambda length: st.integers(0, length - 1))


@st.composite
def cases(draw, kind):
    """Strategy of the cases of one kind."""
    return CASES[kind][0](lambda options: options[draw(_index(len(options)))])
