"""The same codes as `modules.sample`, with every activation computed once.

`modules.sample` runs the whole network once per code and uses one position of its output. Here, as in [1], activations
that later positions need are kept. PixelCNN: the vertical stack of a row depends on the rows above alone, so it is
computed for a whole row at once, as matrix products; the horizontal stack then goes along the row, one code at a time,
over its last few features. Attention: the keys and values of all codes so far are kept. The multiplications are those
of one forward pass.

A row of a PixelCNN is a function of static buffers. On a GPU it is captured once as a CUDA graph and replayed for
every row, so that the time of launching kernels does not count. Attention looks back further with every code and is
not captured.

A masked prior draws many codes at once, in any order: see masked.py, whose rounds MaskedSampler runs.

Guidance needs the logits of the same grids without a class. The network then sees the batch twice, the second time
without a class, and the codes drawn from both halves' logits go into both.

[1] Ramachandran et al., Fast Generation for Convolutional Autoregressive Models, 2017, arXiv:1704.06001
"""
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from modules import PixelCNN
from priors.attention import TransformerBlock, fourier
from priors.draws import Draw, draw, guide, uniforms
from priors.masked import Masked, draw_in_rounds
from priors.transformer import Transformer


class Sampler:
    """Draws batches of grids from one prior: `make_sampler` makes it once, and it is called for every batch.

    A subclass computes the logits, code by code, or draws whole grids in a way of its own.
    """

    def __init__(self, model: nn.Module, batch_size: int, width: int, how: Draw):
        self.model, self.how = model, how
        self.batch_size, self.width = batch_size, width
        self.inputs = batch_size if how.guidance == 1 else 2 * batch_size  # the batch that the network sees
        device = next(model.parameters()).device
        self.labels = torch.full((self.inputs,), model.num_classes, device=device)
        self.uniform = torch.zeros(batch_size, width, device=device)
        self.known = torch.full((batch_size, width), -1, device=device)
        self.codes = torch.zeros(batch_size, width, dtype=torch.int64, device=device)
        self.keep = torch.zeros(batch_size, width, dtype=torch.bool, device=device)
        self.columns = list(zip(*(row.unbind(1) for row in (self.uniform, self.keep, self.known, self.codes))))
        self.logits = torch.zeros(self.inputs, model.config.num_codes, device=device)  # of the codes drawn last
        self.choose = lambda logits, uniform: draw(logits, uniform, *how[:3])

    @torch.inference_mode()
    def __call__(self, labels: Tensor, uniform: Tensor, known: Tensor | None = None,
                 on_row: Callable[[], None] = lambda: None) -> Tensor:
        """Draw a grid for each label: (B, height, width) int64 codes on the model's device.

        labels: (B,) int64 classes, `num_classes` for none, B at most `batch_size`. uniform: (B, height, width)
        in [0, 1), the chance. known: (B, height, width) codes to keep, -1 where one is to be drawn.
        on_row: called after every row.
        """
        count, height, width = self._check(uniform)
        grids = torch.empty(count, height, width, dtype=torch.int64, device=self.codes.device)
        uniform = uniform.to(self.codes.device)
        self.labels[:count] = labels.to(self.codes.device)
        self.known.fill_(-1)
        self._start(height)
        for row in range(height):
            self.uniform[:count] = uniform[:, row]
            if known is not None:
                self.known[:count] = known[:, row].to(self.known.device)
            torch.ge(self.known, 0, out=self.keep)
            self._row(row, height)
            grids[:, row] = self.codes[:count]
            on_row()
        return grids

    def _check(self, uniform: Tensor) -> tuple[int, int, int]:
        """The shape of uniform (B, height, width). ValueError unless it is of at most `batch_size` grids of `width`."""
        count, height, width = uniform.shape
        if width != self.width or not 0 < count <= self.batch_size:
            raise ValueError(f"need 1 to {self.batch_size} grids of width {self.width}, not {tuple(uniform.shape)}")
        return count, height, width

    def _start(self, height: int) -> None:
        """Prepare for grids of this height and the classes in `labels`."""
        raise NotImplementedError

    def _row(self, row: int, height: int) -> None:
        """Draw a row into `codes`."""
        raise NotImplementedError

    def _draw(self, column: int) -> Tensor:
        """The codes (inputs,) of one column of the row: the known ones, the others drawn from `logits`."""
        uniform, keep, known, codes = self.columns[column]
        logits = self.logits if self.how.guidance == 1 else guide(*self.logits.chunk(2), self.how.guidance)
        torch.where(keep, known, self.choose(logits, uniform), out=codes)
        return codes if self.how.guidance == 1 else codes.repeat(2)


# ---------------------------------------------------------------------------------------------------------
# PixelCNN


class PixelCNNSampler(Sampler):
    """The two stacks of a PixelCNN. It holds a few rows of activations."""

    @torch.inference_mode()
    def __init__(self, model: PixelCNN, batch_size: int, width: int, how: Draw):
        super().__init__(model, batch_size, width, how)
        self.hidden, reach = model.config.hidden, model.config.kernel_size // 2
        self.reach = reach
        device = model.embedding.weight.device

        def taps(weight: Tensor) -> Tensor:  # (outputs, C, length) to the (length * C, outputs) matrix of a window
            return weight.permute(2, 1, 0).flatten(0, 1).contiguous()

        # Weights as matrices; vertical_taps[l][j] is what a row adds to the row j below it. tanh(x) is computed as
        # 2 sigmoid(2x) - 1, a fourth of its cost: the first half of all features is stored doubled, see `_gate`.
        double = torch.ones(2 * self.hidden, device=device)
        double[:self.hidden] = 2
        self.double = double
        self.vertical_taps = [[taps(block.vertical.weight[:, :, reach - j]) * double
                               if j or block.residual else None for j in range(reach + 1)] for block in model.blocks]
        self.across = [block.across.weight[:, :, 0, 0].T / double[:, None] * double for block in model.blocks]
        self.horizontal_taps = [taps(block.horizontal.weight[:, :, 0]) * double for block in model.blocks]
        self.out = [block.out.weight[:, :, 0, 0].T * 2 for block in model.blocks]
        self.head = [(conv.bias.repeat(self.inputs, 1), conv.weight[:, :, 0, 0].T.contiguous())
                     for conv in (model.head[1], model.head[3])]

        def zeros(*shape: int) -> list[Tensor]:
            return [torch.zeros(self.inputs, *shape, device=device) for _ in model.blocks]

        # The inputs of each layer for one row, with `reach` zero columns at either side; v[0] and h[0] are embeddings.
        padded = (width + 2 * reach, self.hidden)
        self.v = zeros(*padded)
        self.h = zeros(*padded)
        self.v[0] = self.h[0]
        self.h_features = zeros(width, 2 * self.hidden)  # input of the horizontal stack from the vertical and the class
        rows = (self.inputs * width, 2 * self.hidden)
        self.v_bias = [torch.zeros(rows, device=device) for _ in model.blocks]
        self.h_bias = [torch.zeros(rows, device=device) for _ in model.blocks]
        # v_features[l][j]: the sum over the rows so far of what they add to the row j below the one to be drawn
        self.v_features = [[torch.zeros(rows, device=device) for _ in range(reach)] for _ in model.blocks]
        self.gates = torch.zeros(self.inputs, 2 * self.hidden, device=device)  # of the code being drawn
        self.signal, self.valve = self.gates.chunk(2, 1)
        self.half = torch.full((), 0.5, device=device)  # a Python number would become a new tensor for every code
        self.gated = torch.zeros(self.inputs, self.hidden, device=device)
        self.last = torch.zeros(self.inputs, self.hidden, device=device)  # the horizontal stack's output
        self.places = [self._places(column) for column in range(width)]
        self.embedded = self.h[0][:, reach:reach + width].unbind(1)
        self.graph = self._capture() if device.type == "cuda" else None

    def _places(self, column: int) -> list[tuple[Tensor, Tensor, Tensor | None, Tensor]]:
        """What `_code` reads and writes at a column, for each layer, as views made once: making a view takes as long
        as adding to it. The features so far, the window of the layer's input, its last column (None: no residual), and
        the output.
        """
        places = []
        for i, block in enumerate(self.model.blocks):
            end = column + self.reach + block.residual
            window = self.h[i].view(self.inputs, -1)[:, column * self.hidden:end * self.hidden]
            target = self.h[i + 1][:, column + self.reach] if i + 1 < len(self.h) else self.last
            h = self.h[i][:, column + self.reach] if block.residual else None
            places.append((self.h_features[i][:, column], window, h, target))
        return places

    def _start(self, height: int) -> None:
        # above the first row there are only the biases and the class
        conditions = self.model.condition(self.labels).chunk(len(self.model.blocks), 1)
        for i, (block, condition) in enumerate(zip(self.model.blocks, conditions)):
            v_condition, h_condition = condition[:, None].expand(-1, self.width, -1).flatten(0, 1).chunk(2, 1)
            torch.mul(v_condition + block.vertical.bias, self.double, out=self.v_bias[i])
            torch.mul(h_condition + block.horizontal.bias, self.double, out=self.h_bias[i])
            for features in self.v_features[i]:
                features.copy_(self.v_bias[i])
        self.h[0].zero_()

    def _row(self, row: int, height: int) -> None:
        if self.graph:
            self.graph.replay()
        else:
            self._next_row(height - 1 - row)

    def _next_row(self, rows_below: int) -> None:
        """Draw the next row into `codes`; rows_below: how many rows follow it and need what it adds."""
        inside = slice(self.reach, self.reach + self.width)
        for i in range(len(self.model.blocks)):  # the vertical stack of the row
            if i == 0:
                features = self.v_features[0][0]
            else:
                window = self._window(self.v[i])
                features = torch.addmm(self.v_features[i][0], window, self.vertical_taps[i][0])
                self._carry(i, window, rows_below)
            h_features = self.h_features[i].view_as(features)
            torch.addmm(self.h_bias[i], features, self.across[i], out=h_features)
            if i + 1 < len(self.model.blocks):
                gated = self._gate(features, *features.chunk(2, 1)).view(self.inputs, self.width, -1)
                before = self.v[i][:, inside] if i else torch.zeros_like(gated)
                torch.add(before, gated, alpha=2, out=self.v[i + 1][:, inside])
        for column in range(self.width):
            self._code(column)
        if rows_below:
            self._carry(0, self._window(self.v[0]), rows_below)

    def _window(self, row: Tensor) -> Tensor:
        """The 2 * reach + 1 columns around every position of a padded row, as (B * width, columns * C)."""
        columns = [row[:, j:j + self.width] for j in range(2 * self.reach + 1)]
        return torch.cat(columns, 2).view(self.inputs * self.width, -1)

    def _carry(self, i: int, window: Tensor, rows_below: int) -> None:
        """Add to the vertical features of layer i in the rows below this one."""
        for j in range(min(self.reach, rows_below)):
            so_far = self.v_features[i][j + 1] if j + 1 < self.reach else self.v_bias[i]
            torch.addmm(so_far, window, self.vertical_taps[i][j + 1], out=self.v_features[i][j])

    def _code(self, column: int) -> Tensor:
        """Draw the codes (inputs,) of one column of the row."""
        self._step(column)
        codes = self._draw(column)
        self.embedded[column].copy_(self.model.embedding.weight.index_select(0, codes))
        return codes

    def _step(self, column: int) -> None:
        """Fill `logits` for one column of the row, by the horizontal stack and the head."""
        for i in range(len(self.places[column])):
            self._layer(i, column)
        (bias_1, weight_1), (bias_2, weight_2) = self.head
        torch.addmm(bias_2, torch.addmm(bias_1, self.last.relu(), weight_1).relu_(), weight_2, out=self.logits)

    def _layer(self, i: int, column: int) -> None:
        """The horizontal stack of layer i at one column of the row."""
        features, window, h, target = self.places[column][i]
        torch.addmm(features, window, self.horizontal_taps[i], out=self.gates)
        self._gate(self.gates, self.signal, self.valve, out=self.gated)
        if h is None:
            torch.mm(self.gated, self.out[i], out=target)
        else:
            torch.addmm(h, self.gated, self.out[i], out=target)

    def _gate(self, features: Tensor, signal: Tensor, valve: Tensor, out: Tensor | None = None) -> Tensor:
        """Half of `modules.gate` for features (N, 2C) with their first half doubled, which it overwrites: (N, C).

        tanh(a) sigmoid(b) = 2 (sigmoid(2a) - 1/2) sigmoid(b). signal, valve: the halves of features, as views.
        """
        features.sigmoid_()
        return torch.mul(signal.sub_(self.half), valve, out=out)

    def _capture(self) -> torch.cuda.CUDAGraph:
        """A row as a CUDA graph. The number of rows below is not fixed, so it adds to as many as it can reach."""
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):  # warm-up: lets cuBLAS take its workspaces outside the capture
            self._next_row(rows_below=self.reach)
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            self._next_row(rows_below=self.reach)
        return graph


# ---------------------------------------------------------------------------------------------------------
# Attention


class Memory:
    """One layer's attention, at one position after the other, and the keys and values of those before.

    features, (inputs, C + 2 C / heads): the queries of all heads, the key and the value of the position. found,
    (inputs, C): what the attention gives.
    """

    def __init__(self, inputs: int, places: int, hidden: int, heads: int, device: torch.device):
        size = hidden // heads
        self.features = torch.zeros(inputs, hidden + 2 * size, device=device)
        self.parts = self.features.view(inputs, heads + 2, size)
        self.query, self.key_value = self.parts[:, :heads], self.parts[:, heads:]
        self.found = torch.zeros(inputs, hidden, device=device)
        self.found_by_head = self.found.view(inputs, heads, size)
        memory = torch.zeros(inputs, places, 2, size, device=device)
        keys, values = memory.unbind(2)
        keys = keys.transpose(1, 2)
        # views made once: of each position's key and value (inputs, 2, C / heads), and of those up to each position
        self.places = memory.unbind(1)
        self.seen = [(keys.narrow(2, 0, place + 1), values.narrow(1, 0, place + 1)) for place in range(places)]

    def look_up(self, place: int) -> None:
        """Fill `found` by the attention of the queries to all positions up to `place`."""
        keys, values = self.seen[place]
        torch.bmm(torch.bmm(self.query, keys).softmax(2), values, out=self.found_by_head)


def after_norm(norm: nn.LayerNorm, linear: nn.Linear, inputs: int) -> tuple[Tensor, Tensor]:
    """linear(norm(x)) as bias (inputs, outputs) and matrix (channels, outputs) for an x whose mean is 0 and whose
    variance is 1 already: they hold the norm's own factors and offsets.
    """
    bias = linear.bias + linear.weight @ norm.bias
    return bias.repeat(inputs, 1), (linear.weight * norm.weight).T.contiguous()


class BlockSampler:
    """A block of a transformer, at one position after the other, with the keys and values of those before."""

    def __init__(self, block: TransformerBlock, inputs: int, places: int):
        (hidden, size, _), heads, device = block.sizes, block.heads, block.out.weight.device
        self.shape, self.heads = (hidden,), heads
        self.query_key_value = after_norm(block.norm_1, block.query_key_value, inputs)
        self.widen = after_norm(block.norm_2, block.mlp[0], inputs)
        self.out, self.narrow = ((layer.bias, layer.weight.T.contiguous()) for layer in (block.out, block.mlp[2]))
        # `TransformerBlock.split` in one go: all parts are divided by length * scale + offset. That gives the key the
        # length 1, a query that times its factor and that of `attend`, and leaves the value as it is
        self.length = torch.zeros(inputs, heads + 2, 1, device=device)
        self.scale = torch.cat([1 / (block.sharpness * size**0.5), torch.tensor([[1.0], [0.0]], device=device)])
        self.offset = torch.tensor([[1e-12]] * (heads + 1) + [[1.0]], device=device)
        self.wide = torch.zeros(inputs, 4 * hidden, device=device)
        self.memory = Memory(inputs, places, hidden, heads, device)

    def step(self, x: Tensor, place: int) -> None:
        """Add to the input x (inputs, C) of a position what the block gives."""
        memory = self.memory
        bias, matrix = self.query_key_value
        torch.addmm(bias, torch.layer_norm(x, self.shape), matrix, out=memory.features)
        torch.linalg.vector_norm(memory.parts, dim=2, keepdim=True, out=self.length)
        memory.parts.div_(torch.addcmul(self.offset, self.length, self.scale, out=self.length))
        memory.places[place].copy_(memory.key_value)
        memory.look_up(place)
        bias, matrix = self.out
        x.add_(bias).addmm_(memory.found, matrix)
        bias, matrix = self.widen
        torch.addmm(bias, torch.layer_norm(x, self.shape), matrix, out=self.wide)
        bias, matrix = self.narrow
        x.add_(bias).addmm_(self.wide.relu_(), matrix)


class TransformerSampler(Sampler):
    """A transformer, one code at a time, with the keys and values of the codes before."""

    @torch.inference_mode()
    def __init__(self, model: Transformer, batch_size: int, width: int, how: Draw):
        super().__init__(model, batch_size, width, how)
        hidden, self.reach, device = model.config.hidden, model.config.kernel_size // 2, self.codes.device
        self.shape, self.height = (hidden,), 0
        self.head = after_norm(model.norm, model.head, self.inputs)
        # what a code adds, by `before`, to the input of each of the next positions: (K, reach, hidden)
        self.near = torch.einsum("kc,ocj->kjo", model.embedding.weight, model.before.weight[:, :, 0]).flip(1)
        # the embeddings of this row and of `reach` rows above it, with as many zero columns at either side
        self.rows = torch.zeros(self.inputs, hidden, self.reach + 1, width + 2 * self.reach, device=device)
        # the input of the row's positions, and of the next ones as far as it is known; and views of it at a position
        self.input = torch.zeros(width + self.reach, self.inputs, hidden, device=device)
        self.places = [(self.input[i], self.input[i + 1:i + 1 + self.reach].transpose(0, 1)) for i in range(width)]

    def _start(self, height: int) -> None:
        if height != self.height:
            self.height, device = height, self.codes.device
            place = self.model.place(fourier(height, self.width, device)) + self.model.before.bias
            self.from_place = place.unflatten(0, (height, self.width))
            places = height * self.width
            self.blocks = [BlockSampler(block, self.inputs, places) for block in self.model.blocks]
        self.condition = self.model.condition(self.labels)
        self.rows.zero_()
        self.input.zero_()

    def _row(self, row: int, height: int) -> None:
        above, inside = self.model.above, slice(self.reach, self.reach + self.width)
        known = F.conv2d(self.rows[:, :, :-1], above.weight, above.bias)[:, :, 0].permute(2, 0, 1) + self.condition
        known += self.from_place[row][:, None]
        self.input[:self.reach] = self.input[self.width:].clone()  # raster order runs on from row to row
        self.input[self.reach:] = 0
        self.input[:self.width] += known
        for column in range(self.width):
            self._code(row * self.width + column, column)
        codes = self.codes if self.how.guidance == 1 else self.codes.repeat(2, 1)
        self.rows[:, :, -1, inside] = self.model.embedding(codes).transpose(1, 2)
        self.rows = self.rows.roll(-1, 2)

    def _code(self, place: int, column: int) -> None:
        """Draw the codes of one column of the row, at this place in raster order."""
        x, next_ones = self.places[column]
        self._step(x, place)
        next_ones.add_(self.near.index_select(0, self._draw(column)))

    def _step(self, x: Tensor, place: int) -> None:
        """Fill `logits` from the input x (inputs, C) of a place, which is overwritten."""
        for block in self.blocks:
            block.step(x, place)
        bias, matrix = self.head
        torch.addmm(bias, torch.layer_norm(x, self.shape), matrix, out=self.logits)


# ---------------------------------------------------------------------------------------------------------
# Rounds


class MaskedSampler(Sampler):
    """A masked prior, in `steps` rounds: not row by row, so that `known` counts wherever it lies."""

    @torch.inference_mode()
    def __call__(self, labels: Tensor, uniform: Tensor, known: Tensor | None = None,
                 on_row: Callable[[], None] = lambda: None) -> Tensor:
        """As the other samplers do; on_row is called `height` times in all, as rounds go on."""
        _, height, _ = self._check(uniform)
        device, rows = self.codes.device, 0
        known = torch.full(uniform.shape, -1) if known is None else known
        for done, grids in draw_in_rounds(self.model, labels.to(device), uniform.to(device), known.to(device),
                                          self.how.steps, self.how.guidance, self.choose):
            while rows < int(done * height):
                rows += 1
                on_row()
        return grids


SAMPLERS = {PixelCNN: PixelCNNSampler, Transformer: TransformerSampler, Masked: MaskedSampler}


def make_sampler(model: nn.Module, batch_size: int, width: int, how: Draw = Draw()) -> Sampler:
    """A sampler of a prior in eval mode. batch_size: grids at once. width: of the grids, whose height is free. With
    guidance it takes twice the time. A masked prior draws in rounds, all others code by code.
    """
    return SAMPLERS[type(model)](model, batch_size, width, how)


def draw_grids(model: nn.Module, labels: Tensor, grid: tuple[int, int], seed: int, batch_size: int,
               how: Draw = Draw(), known: Tensor | None = None, parts: Sequence[Tensor] | None = None,
               on_row: Callable[[], None] = lambda: None) -> Iterator[Tensor]:
    """Batches of codes (B, height, width) drawn from a prior: sample i has class labels[i], and its chance depends on
    seed and i.

    grid: height and width. known: (N, height, width) codes to keep, -1 where one is to be drawn. parts: the numbers of
    the samples of every batch, neighbours and at most `batch_size`; None: all samples.
    """
    sampler = make_sampler(model, min(batch_size, len(labels)), grid[1], how)
    for part in torch.arange(len(labels)).split(batch_size) if parts is None else parts:
        chance = uniforms(seed, int(part[0]), len(part), *grid)
        yield sampler(labels[part], chance, None if known is None else known[part], on_row)
