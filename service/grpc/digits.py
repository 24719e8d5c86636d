"""digits.v1.DigitClassifier: translation between its messages and the operations."""

from __future__ import annotations

from service.core.off_loop import off_loop
from service.grpc.answering import Call, Method, Refusal, Unary
from service.operations.digits import INLINE_ROWS, Digits, Predictions
from service.stubs.digits.v1 import digits_pb2 as pb

DESCRIPTOR = pb.DESCRIPTOR.services_by_name["DigitClassifier"]


def methods(digits: Digits, refusal: Refusal | None = None) -> dict[str, Method]:
    """The methods by their names in proto/digits/v1/digits.proto."""

    async def predict(request: pb.PredictRequest, call: Call) -> pb.PredictResponse:
        form = request.WhichOneof("input")
        answer = await digits.classify(
            picture=request.image if form == "image" else None,
            pixels=request.pixels if form == "pixels" else None,
            model=request.model_name,
            version=request.model_version,
            deadline=call.deadline,
            caller=call.caller,
            explain=request.explain,
        )
        if len(answer.rows) > INLINE_ROWS:
            return await off_loop(_response, answer, size=784 * len(answer.rows))
        return _response(answer)

    return {"Predict": Unary("predict", predict, refusal)}


def _response(answer: Predictions) -> pb.PredictResponse:
    return pb.PredictResponse(
        model_name=answer.model,
        model_version=answer.version,
        predictions=[
            pb.Prediction(
                digit=digit,
                probabilities=row.tolist(),
                entropy_bits=entropy,
                prediction_set=members,
                accepted=accepted,
                reason=reason,
                hint=hint,
            )
            for digit, row, entropy, members, accepted, reason, hint in answer.rows
        ],
        steps=[pb.Step(name=name, png=png) for name, png in answer.steps],
    )
