"""digits.v1.DigitClassifier: translation between its messages and the operations."""

from __future__ import annotations

from service.core.errors import InvalidArgument
from service.grpc.answering import Method, Unary
from service.operations.digits import predictions
from service.operations.inference import Operations
from service.stubs.digits.v1 import digits_pb2 as pb

DESCRIPTOR = pb.DESCRIPTOR.services_by_name["DigitClassifier"]


def methods(operations: Operations) -> dict[str, Method]:
    """The methods by their names in proto/digits/v1/digits.proto."""

    async def predict(request: pb.PredictRequest, deadline: float | None) -> pb.PredictResponse:
        given = request.WhichOneof("input")
        model, version = request.model_name, request.model_version
        if given == "pixels":
            answer = await operations.classify_pixels(request.pixels, model, version, deadline)
        elif given == "image":
            answer = await operations.classify_image(request.image, model, version, deadline)
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

    return {"Predict": Unary("predict", predict)}
