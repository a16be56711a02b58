import pytest

from plait.align.workbench.episode import Episode
from plait.align.workbench.public import load_public_office, load_public_tasks
from plait.align.workbench.tools import TOOLS
from plait.core.errors import DataError
from plait.grade.toolcall import ToolCall

FILES = {
    "calendar_events.csv": "event_id,event_name,participant_email,event_start,duration\n"
    "00000013,sync up,luis.ortiz@atlas.com,2023-08-01 09:00:00,90\n",
    "emails.csv": "email_id,inbox/outbox,sender/recipient,subject,sent_datetime,body\n"
    '00000373,inbox,santiago.m@atlas.com,Task,2023-10-01 09:15:02,"Sam,\nbye"\n',
    "analytics_data.csv": "date_of_visit,visitor_id,page_views,session_duration_seconds,"
    "traffic_source,user_engaged\n2023-10-22,0860,8,4,referral,False\n",
    "project_tasks.csv": "task_id,task_name,assigned_to_email,list_name,due_date,board\n"
    "00000149,Add carousel,leila.azizi@atlas.com,Backlog,2023-11-27,Front end\n",
    "customer_relationship_manager_data.csv": "customer_id,assigned_to_email,customer_name,"
    "customer_email,customer_phone,last_contact_date,product_interest,status,follow_up_by,notes\n"
    "00000189,lena@atlas.com,Taylor Jackson,t.j@nanolabs,,2023-11-30,Consulting,Lost,2023-12-22,\n",
    "email_addresses.csv": "leila.azizi@atlas.com\nlena@atlas.com\n",
    "queries_and_answers/email_queries_and_answers.csv": "query,answer,base_template,"
    'chosen_template,domains\nDelete it,"[\'email.delete_email.func(email_id=""00000373"")\']",'
    "a,b,['email']\n",
}


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "queries_and_answers").mkdir()
    for name, text in FILES.items():
        (tmp_path / name).write_text(text)
    return tmp_path


def test_tables_and_queries_in_the_public_form_are_read(folder):
    office = load_public_office(folder)
    assert office.people == ["leila.azizi@atlas.com", "lena@atlas.com"]
    assert office.tables["emails"]["00000373"]["body"] == "Sam,\nbye"
    [task] = load_public_tasks(folder)
    assert task == ("['email']", "Delete it", [ToolCall("email_delete_email", task.gold[0][1])])
    episode = Episode(office, task.gold)
    assert episode.score().value == 0
    assert episode.call(*task.gold[0]) == '"deleted"'
    assert episode.score().value == 1


@pytest.mark.parametrize(
    "answer", ["x", "['f()']", "['email.delete_email.func(1)']", "['__import__(\"os\").a.b(c=1)']"]
)
def test_gold_calls_are_read_and_never_run(folder, answer):
    quoted = answer.replace('"', '""')
    text = f'query,answer,domains\nq,"{quoted}",d\n'
    (folder / "queries_and_answers/email_queries_and_answers.csv").write_text(text)
    with pytest.raises(DataError, match="record 1 is no query"):
        load_public_tasks(folder)


def test_missing_files_and_columns_are_named(folder):
    (folder / "emails.csv").write_text("a,b\n1,2\n")
    with pytest.raises(DataError, match=r"emails\.csv: no column 'email_id'"):
        load_public_office(folder)
    (folder / "emails.csv").unlink()
    with pytest.raises(DataError, match=r"emails\.csv: no such file"):
        load_public_office(folder)
    with pytest.raises(DataError, match="no CSV files"):
        load_public_tasks(folder / "queries_and_answers")


def test_all_690_public_tasks_are_done_by_their_gold_calls(task_data):
    office = load_public_office(task_data / "workbench")
    tasks = load_public_tasks(task_data / "workbench")
    assert len(tasks) == 690
    idle = 0
    for task in tasks:
        episode = Episode(office, task.gold, max_calls=len(task.gold))
        idle += bool(task.gold) and episode.score().value == 1
        answers = [episode.call(*call) for call in task.gold]
        assert not [answer for answer in answers if answer.startswith("Error")]
        assert episode.score() == (1.0, "correct")
        assert all(TOOLS[call.name].changes for call in task.gold)
    assert idle == 2  # these assign a customer to whom it is assigned already
