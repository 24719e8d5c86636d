"""digits.v1.DigitClassifier: translation between its messages and the operations."""

from __future__ import annotations

from service.core.digits import Prediction
from service.core.off_loop import off_loop
from service.grpc.answering import Call, Method, Refusal, Unary
from service.operations.digits import INLINE_ROWS, Digits, Predictions
from service.stubs.digits.v1 import digits_pb2 as pb

DESCRIPTOR = pb.DESCRIPTOR.services_by_name["DigitClassifier"]


def methods(digits: Digits, refusal: Refusal | None = None) -> dict[str, Method]:
    """The methods by their names in proto/digits/v1/digits.proto."""

    async def predict(request: pb.PredictRequest, call: Call) -> pb.PredictResponse:
        form = request.WhichOneof("input")
        answering = digits.classify(
            picture=request.image if form == "image" else None,
            pixels=request.pixels if form == "pixels" else None,
            model=request.model_name,
            version=request.model_version,
            deadline=call.deadline,
            caller=call.caller,
            trace=call.trace,
            explain=request.explain,
        )
        del request  # it has its contents a second time
        answer = await answering
        if len(answer.rows) > INLINE_ROWS:
            return await off_loop(_response, answer, size=784 * len(answer.rows))
        return _response(answer)

    async def read(request: pb.ReadRequest, call: Call) -> pb.ReadResponse:
        answering = digits.read(
            request.image,
            model=request.model_name,
            version=request.model_version,
            deadline=call.deadline,
            caller=call.caller,
            trace=call.trace,
        )
        del request
        answer = await answering
        return pb.ReadResponse(
            model_name=answer.model,
            model_version=answer.version,
            text=answer.text,
            digits=[
                pb.ReadDigit(
                    box=pb.Box(**digit.box._asdict()),
                    prediction=_prediction(digit.prediction),
                    line=digit.line,
                )
                for digit in answer.digits
            ],
            lines=answer.lines,
            hint=answer.hint,
        )

    return {
        "Predict": Unary("predict", predict, refusal, scope="predict"),
        "Read": Unary("read", read, refusal, scope="predict"),
    }


def _response(answer: Predictions) -> pb.PredictResponse:
    response = pb.PredictResponse(
        model_name=answer.model,
        model_version=answer.version,
        steps=[pb.Step(name=name, png=png) for name, png in answer.steps],
    )
    # Not as one list: each message outside of its response has memory of its own.
    response.predictions.extend(map(_prediction, answer.rows))
    return response


def _prediction(row: Prediction) -> pb.Prediction:
    digit, probabilities, entropy, members, accepted, reason, hint = row
    return pb.Prediction(
        digit=digit,
        probabilities=probabilities.tolist(),
        entropy_bits=entropy,
        prediction_set=members,
        accepted=accepted,
        reason=reason,
        hint=hint,
    )
