import sys

from sqlalchemy import select

from shop.database import Session
from shop.models import Customer, Order


def place_order(email: str, item: str) -> int:
    with Session.begin() as session:
        customer = session.scalars(select(Customer).where(Customer.email == email)).one()
        order = Order(customer=customer, item=item)
        session.add(order)
        session.flush()
        return order.id


if __name__ == "__main__":
    print("order", place_order(*sys.argv[1:]))
