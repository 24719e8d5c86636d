"""digits.v1.DigitClassifier: translation between its messages and the operations."""

from __future__ import annotations

from service.core.errors import InvalidArgument
from service.grpc.calls import Calls, Context
from service.operations import Operations, predictions
from service.stubs.digits.v1 import digits_pb2 as pb
from service.stubs.digits.v1 import digits_pb2_grpc


class DigitClassifier(digits_pb2_grpc.DigitClassifierServicer):
    """The servicer of proto/digits/v1/digits.proto."""

    def __init__(self, operations: Operations, calls: Calls) -> None:
        self._operations = operations
        self._calls = calls

    async def Predict(  # noqa: N802 (the name in the proto)
        self,
        request: pb.PredictRequest,
        context: Context[pb.PredictRequest, pb.PredictResponse],
    ) -> pb.PredictResponse:
        return await self._calls.answer("predict", self._predict, request, context)

    async def _predict(
        self, request: pb.PredictRequest, deadline: float | None
    ) -> pb.PredictResponse:
        given = request.WhichOneof("input")
        model, version = request.model_name, request.model_version
        if given == "pixels":
            answer = await self._operations.classify_pixels(
                request.pixels, model, version, deadline
            )
        elif given == "image":
            answer = await self._operations.classify_image(request.image, model, version, deadline)
        else:
            raise InvalidArgument("input: give either pixels or image.")
        return pb.PredictResponse(
            model_name=answer.model,
            model_version=answer.version,
            predictions=[
                pb.Prediction(digit=digit, probabilities=row.tolist(), entropy_bits=entropy)
                for digit, row, entropy in predictions(answer)
            ],
        )
