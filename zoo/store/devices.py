"""Workers and devices in SQL, and the leases that keep measuring apart from training."""

from __future__ import annotations

from datetime import timedelta
from typing import Literal

from sqlalchemy import ColumnElement, and_, delete, or_, select
from sqlalchemy.orm import Session

from zoo.errors import InvalidInputError, NotFoundError
from zoo.spec import Device
from zoo.store.database import Database
from zoo.store.job_rows import document
from zoo.store.protocols import WorkerInfo
from zoo.store.tables import DeviceLeaseRow, DeviceRow, PlaceRow, WorkerRow


class SqlDevices:
    """``DeviceStore`` on SQL."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def announce(self, worker: WorkerInfo) -> None:
        now = self._database.now()
        values = {
            "id": worker.id,
            "devices": [device.to_json() for device in worker.devices],
            "catalogue": document(worker.catalogue),
            "seen_at": now,
        }
        with self._database.write() as session:
            for device in sorted(worker.devices, key=lambda device: device.id):
                known = {**device.to_json(), "seen_at": now}
                self._database.upsert(
                    session, DeviceRow, known, keys=("id",), update=("name", "seen_at")
                )
            for place in sorted({device.place for device in worker.devices}):
                self._database.upsert(
                    session,
                    PlaceRow,
                    {"id": place, "seen_at": now},
                    keys=("id",),
                    update=("seen_at",),
                )
            self._database.upsert(
                session, WorkerRow, values, keys=("id",), update=values.keys() - {"id"}
            )

    def retire(self, worker_id: str) -> None:
        with self._database.write() as session:
            session.execute(delete(WorkerRow).where(WorkerRow.id == worker_id))

    def workers(self, *, within_s: float = 60.0) -> tuple[WorkerInfo, ...]:
        since = self._database.now() - timedelta(seconds=within_s)
        statement = select(WorkerRow).where(WorkerRow.seen_at >= since).order_by(WorkerRow.id)
        with self._database.read() as session:
            return tuple(
                WorkerInfo(
                    id=row.id,
                    devices=tuple(Device.from_json(item) for item in row.devices),
                    catalogue=row.catalogue,
                    seen_at=row.seen_at,
                )
                for row in session.scalars(statement)
            )

    def devices(self) -> tuple[Device, ...]:
        statement = select(DeviceRow).order_by(DeviceRow.name, DeviceRow.id)
        with self._database.read() as session:
            return tuple(_device_of(row) for row in session.scalars(statement))

    def device(self, ref: str) -> Device:
        with self._database.read() as session:
            return _device_of(_find(session, ref))

    def acquire(
        self, place: str, holder: str, mode: Literal["shared", "exclusive"], *, lease_s: float
    ) -> bool:
        if mode not in ("shared", "exclusive"):
            raise InvalidInputError(f"lease mode {mode!r} is not one of: shared, exclusive")
        now = self._database.now()
        with self._database.write() as session:
            _lock(session, place)
            session.execute(
                delete(DeviceLeaseRow).where(
                    DeviceLeaseRow.place == place, DeviceLeaseRow.expires_at <= now
                )
            )
            granted = self._is_free(session, place, holder, mode)
            mine = and_(DeviceLeaseRow.place == place, DeviceLeaseRow.holder == holder)
            if granted:
                session.execute(delete(DeviceLeaseRow).where(mine))
            elif mode == "shared":
                return False
            values = {
                "place": place,
                "holder": holder,
                "mode": mode,
                "granted": granted,
                "expires_at": now + timedelta(seconds=lease_s),
            }
            self._database.upsert(
                session,
                DeviceLeaseRow,
                values,
                keys=("place", "holder", "mode"),
                update=("granted", "expires_at"),
            )
            return granted

    def _is_free(self, session: Session, place: str, holder: str, mode: str) -> bool:
        leases = session.scalars(select(DeviceLeaseRow).where(DeviceLeaseRow.place == place)).all()
        others = [lease for lease in leases if lease.holder != holder]
        if mode == "exclusive":
            return not any(lease.granted for lease in others)
        holds_already = any(lease.granted for lease in leases if lease.holder == holder)
        in_the_way = [
            lease
            for lease in others
            if lease.mode == "exclusive" and (lease.granted or not holds_already)
        ]
        return not in_the_way

    def release(self, place: str, holder: str) -> None:
        with self._database.write() as session:
            session.execute(
                delete(DeviceLeaseRow).where(
                    DeviceLeaseRow.place == place, DeviceLeaseRow.holder == holder
                )
            )


def _lock(session: Session, place: str) -> None:
    """Lock the row of a place, so that one request at a time decides who has it."""
    statement = select(PlaceRow).where(PlaceRow.id == place).with_for_update()
    if session.scalars(statement).first() is None:
        raise NotFoundError(f"no worker ever announced a device at {place!r}; announce it first")


def _find(session: Session, ref: str) -> DeviceRow:
    """Return the device with this id, or the one seen last with this name."""
    named: ColumnElement[bool] = or_(DeviceRow.id == ref, DeviceRow.name == ref)
    statement = (
        select(DeviceRow)
        .where(named)
        .order_by((DeviceRow.id == ref).desc(), DeviceRow.seen_at.desc(), DeviceRow.id)
        .limit(1)
    )
    row = session.scalars(statement).first()
    if row is None:
        known = sorted(session.scalars(select(DeviceRow.name).distinct()))
        raise NotFoundError(
            f"no worker ever announced a device {ref!r}; known: {', '.join(known) or 'none'}"
        )
    return row


def _device_of(row: DeviceRow) -> Device:
    return Device(name=row.name, kind=row.kind, info=row.info)
